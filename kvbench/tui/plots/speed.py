"""Decode speed as bars, fastest first, with the reference's as a line through them."""

from __future__ import annotations

from dataclasses import dataclass

from rich.style import Style

from kvbench.formats import TIMES, fixed
from kvbench.metrics.row import Row
from kvbench.spec import BASELINE
from kvbench.tui.canvas import Canvas
from kvbench.tui.plots.scene import Scene, nothing_yet, too_small

_FIGURES, _ROOFLINE = 19, 10
"""Cells of the figures behind a bar; of the roofline's share, where it is known."""


@dataclass(frozen=True)
class _Layout:
    """Columns: where bars begin and how long they may be, what the longest is, and the cells of the roofline's share."""

    left: int
    width: int
    most: float
    reference: float | None
    roofline: int


def draw_speed(canvas: Canvas, scene: Scene) -> None:
    """One bar a method, with tokens/s, its multiple of the reference, and the share of what the bytes allow."""
    timed = sorted((r for r in scene.rows if r.tokens_per_s), key=lambda r: -(r.tokens_per_s or 0.0))
    if too_small(canvas) or not timed:
        nothing_yet(canvas, scene, "speed")
        return
    reference = next((r.tokens_per_s for r in timed if r.label == BASELINE), None)
    shown = _shown(timed, canvas.height - 1, scene.selected)
    roofline = _ROOFLINE if any(r.roofline_fraction is not None for r in timed) and canvas.width >= 3 * _FIGURES else 0
    left = max(len(r.label) for r in shown) + 2
    layout = _Layout(left, max(4, canvas.width - left - _FIGURES - roofline), timed[0].tokens_per_s or 1.0, reference, roofline)
    canvas.text(0, 0, "tokens/s while decoding", scene.palette.dim)
    canvas.right(canvas.width - roofline, 0, f"{TIMES} baseline", scene.palette.dim)
    if roofline:
        canvas.right(canvas.width, 0, "roofline", scene.palette.dim)
    for y, row in enumerate(shown, start=1):
        _draw_bar(canvas, scene, row, y, layout)
    if reference:
        column = left + min(layout.width - 1, round(reference / layout.most * layout.width))
        for y in range(1, 1 + len(shown)):
            canvas.text(column, y, "│", scene.palette.strong)


def _draw_bar(canvas: Canvas, scene: Scene, row: Row, y: int, layout: _Layout) -> None:
    speed, end = row.tokens_per_s or 0.0, canvas.width - layout.roofline
    ink = scene.ink(row.label)
    mark = "◆" if row.label == scene.selected else " "
    canvas.text(0, y, f"{mark}{row.label}"[: layout.left - 1], ink)
    canvas.text(layout.left, y, "▇" * max(1, round(speed / layout.most * layout.width)), Style(color=ink.color))
    canvas.right(end - 9, y, fixed(speed, 1, 8), scene.palette.strong if mark == "◆" else scene.palette.text)
    if row.other_read_path:  # another path than the baseline's forms no ratio with it
        canvas.right(end, y, {"reference": "ref path"}.get(row.other_read_path, row.other_read_path)[:8], scene.palette.ink("warning"))
    elif layout.reference:
        canvas.right(end, y, f"{fixed(speed / layout.reference, 2, 5)}{TIMES}", scene.palette.dim)
    if layout.roofline and row.roofline_fraction is not None:
        canvas.right(canvas.width, y, f"{fixed(100 * row.roofline_fraction, 1, 6)} %", scene.palette.dim)


def _shown(timed: list[Row], count: int, selected: str | None) -> list[Row]:
    """The fastest that fit, with the reference and the selected method always among them."""
    if len(timed) <= count:
        return timed
    always = [r for r in timed if r.label in (BASELINE, selected)]
    rest = [r for r in timed if r not in always][: max(0, count - len(always))]
    return sorted(always + rest, key=lambda r: -(r.tokens_per_s or 0.0))[:count]
