"""Stored bytes (or compression factor) against KL: which methods give most for least."""

from __future__ import annotations

from collections.abc import Iterable

from kvbench.figures.axes import Scale
from kvbench.formats import MIB
from kvbench.metrics import factors
from kvbench.metrics.front import Point, frontier, points
from kvbench.spec import BASELINE
from kvbench.tui.canvas import Canvas
from kvbench.tui.frame import Frame, framed
from kvbench.tui.plots.scene import Scene, nothing_yet, too_small

_FLOOR = 1e-6
_SEPARATOR = " · "
_PLACES = ((2, 0), (-1, 0), (2, -1), (2, 1), (-1, -1), (-1, 1), (0, -1), (0, 1))
"""Where a label may stand: (cells right of its mark, rows below); -1 ends left of it."""


def draw_pareto(canvas: Canvas, scene: Scene) -> None:
    """A scatter with the frontier through its undominated points; the reference lies on the floor."""
    found = points(scene.rows)
    compressed = [p for p in found if p.label != BASELINE and p.kl > 0]
    if too_small(canvas) or not compressed:
        nothing_yet(canvas, scene, "perplexity")
        return
    title = factors.titled("compression factor", scene.rows[0].cache_dtype) if scene.by_factor else "stored MiB"
    frame = framed(
        canvas, _x_scale(found, scene), _y_scale(compressed), scene.palette,
        x_title=title, y_title="KL to baseline, nats/token  (lower is better)",
    )  # fmt: skip
    best = frontier(compressed)
    _draw_frontier(frame, best, scene)
    _draw_marks(frame, found, {p.label for p in best}, scene)


def _x(point: Point, scene: Scene) -> float:
    return point.factor if scene.by_factor else (point.stored or 0.0) / MIB


def _x_scale(found: list[Point], scene: Scene) -> Scale:
    largest = max(_x(p, scene) for p in found)
    return Scale(0.0, largest * 1.06)


def _y_scale(compressed: list[Point]) -> Scale:
    low, high = min(p.kl for p in compressed), max(p.kl for p in compressed)
    return Scale(max(_FLOOR, low / 2), max(high * 1.6, low * 4), log=True)


def _draw_frontier(frame: Frame, best: list[Point], scene: Scene) -> None:
    """Steps: between two measured points nothing better is promised than the worse corner."""
    path: list[tuple[float, float]] = []
    for point in best:
        if path:
            path.append((_x(point, scene), path[-1][1]))
        path.append((_x(point, scene), point.kl))
    if len(best) > 1:
        frame.path(path, scene.palette.ink("primary"))


def _draw_marks(frame: Frame, found: list[Point], best: set[str], scene: Scene) -> None:
    """Marks first, so that no label hides one; then labels, the most telling first."""
    order = sorted(found, key=lambda p: (p.label == scene.selected, p.label in best), reverse=True)
    by_cell: dict[tuple[int, int], list[str]] = {}
    for point in order:
        by_cell.setdefault(frame.cell(_x(point, scene), max(point.kl, frame.y.low)), []).append(point.label)
    for cell, labels in by_cell.items():
        top = labels[0]
        mark = "◆" if top == scene.selected else "◇" if top == BASELINE else "●" if top in best else "○"
        frame.canvas.text(*cell, mark, scene.ink(top))
    left_over = [(cell, _place_right(frame, cell, labels, scene)) for cell, labels in by_cell.items()]
    for cell, labels in left_over:
        if labels and not _place(frame, cell, labels, _PLACES[:2], scene):
            for label in labels:
                _place(frame, cell, [label], _PLACES, scene)


def _place_right(frame: Frame, cell: tuple[int, int], labels: list[str], scene: Scene) -> list[str]:
    """Write as many of a cell's labels as fit right of its mark; give back the rest."""
    for count in range(len(labels), 0, -1):
        if _place(frame, cell, labels[:count], _PLACES[:1], scene):
            return labels[count:]
    return labels


def _place(frame: Frame, cell: tuple[int, int], labels: list[str], places: Iterable[tuple[int, int]], scene: Scene) -> bool:
    """Write the labels of one cell side by side at the first place that is free."""
    texts = [f"{label} (KL 0)" if label == BASELINE else label for label in labels]
    length = len(_SEPARATOR.join(texts))
    for right, down in places:
        start = cell[0] + right if right > 0 else cell[0] - length // 2 if right == 0 else cell[0] - 1 - length
        row = cell[1] + down
        inside = frame.left <= start and frame.top <= row < frame.top + frame.height
        own = 1 if right > 0 and down == 0 else 2  # cells kept free before it, so that it seems no other mark's label
        room = min(length + own + 1, frame.canvas.width - start + own)
        if inside and room >= length + own and frame.canvas.is_free(max(0, start - own), row, room):
            for label, text in zip(labels, texts, strict=True):
                frame.canvas.text(start, row, text, scene.ink(label))
                start += len(text)
                frame.canvas.text(start, row, _SEPARATOR if label != labels[-1] else "", scene.palette.line)
                start += len(_SEPARATOR)
            return True
    return False
