"""Perplexity as samples accrue, one line a method."""

from __future__ import annotations

from kvbench.figures.axes import Scale, padded
from kvbench.formats import fixed
from kvbench.spec import BASELINE
from kvbench.tui.canvas import Canvas
from kvbench.tui.frame import Frame, framed
from kvbench.tui.panel_facts import running_perplexity
from kvbench.tui.plots.scene import Scene, nothing_yet, spread, too_small

_SPREAD = 3.0
"""Lines that end this many times above the median are drawn on the upper edge, so that they do not flatten the rest."""


def draw_perplexity(canvas: Canvas, scene: Scene) -> None:
    """Lines with their names at their ends; the selected method is drawn last and marked."""
    failed = {r.label for r in scene.rows if r.status == "failed"}
    lines = {label: line for label, line in running_perplexity(scene.state).items() if label not in failed}
    if too_small(canvas) or not lines:
        nothing_yet(canvas, scene, "perplexity")
        return
    planned = scene.state.spec.samples if scene.state.spec else 1
    longest = max(line[-1][0] for line in lines.values())
    labels_width = max(len(label) for label in lines) + 8
    right = labels_width if canvas.width - labels_width >= 30 else 0
    frame = framed(
        canvas, Scale(1.0, float(max(planned, longest, 2))), _y_scale(lines), scene.palette, right=right,
        x_title="", y_title="perplexity over the samples so far", x_label=lambda v: f"{v:.0f}" if v == int(v) else "",
    )  # fmt: skip
    for label in sorted(lines, key=lambda name: name == scene.selected):
        _draw_line(frame, lines[label], label, scene)
    if right:
        _draw_names(frame, lines, scene)


def _y_scale(lines: dict[str, list[tuple[int, float]]]) -> Scale:
    ends = sorted(line[-1][1] for line in lines.values())
    limit = ends[len(ends) // 2] * _SPREAD
    values = [v for line in lines.values() for _, v in line if v <= limit] or ends[:1]
    return padded(values, log=True, pad=0.08)


def _draw_line(frame: Frame, line: list[tuple[int, float]], label: str, scene: Scene) -> None:
    frame.path([(float(n), v) for n, v in line], scene.ink(label))
    column, row = frame.cell(float(line[-1][0]), line[-1][1])
    frame.canvas.text(column, row, "◆" if label == scene.selected else "•", scene.ink(label))


def _draw_names(frame: Frame, lines: dict[str, list[tuple[int, float]]], scene: Scene) -> None:
    """Names beside the ends, spread over the rows there are; the selected one and the baseline are always among them."""
    height = frame.canvas.height - 1
    order = sorted(lines, key=lambda label: -lines[label][-1][1])
    if len(order) > height:
        order = _thinned(order, height, [scene.selected or "", BASELINE])
    rows = spread([frame.cell(1.0, lines[label][-1][1])[1] for label in order], 0, height - 1)
    for label, row in zip(order, rows, strict=True):
        value = lines[label][-1][1]
        ink = scene.ink(label)
        frame.canvas.text(frame.left + frame.width + 1, row, f"{'◆' if label == scene.selected else ' '}{label}", ink)
        frame.canvas.right(frame.canvas.width, row, fixed(value, 2, 6), ink)


def _thinned(order: list[str], count: int, keep: list[str]) -> list[str]:
    """``count`` of the labels, evenly, with those of ``keep`` among them."""
    kept = [label for label in keep if label in order][:count]
    rest = [label for label in order if label not in kept]
    step = len(rest) / max(1, count - len(kept))
    chosen = {*kept, *(rest[int(i * step)] for i in range(count - len(kept)))}
    return [label for label in order if label in chosen]
