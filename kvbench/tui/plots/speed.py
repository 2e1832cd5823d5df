"""Decode speed as bars, fastest first, with the reference's as a line through them."""

from __future__ import annotations

from rich.style import Style

from kvbench.evaluators.base import BASELINE
from kvbench.formats import TIMES, fixed
from kvbench.summary import Row
from kvbench.tui.canvas import Canvas
from kvbench.tui.plots.scene import Scene, nothing_yet, too_small

_FIGURES = 19


def draw_speed(canvas: Canvas, scene: Scene) -> None:
    """One bar a method, with tokens/s and its multiple of the reference."""
    timed = sorted((r for r in scene.rows if r.tokens_per_s), key=lambda r: -(r.tokens_per_s or 0.0))
    if too_small(canvas) or not timed:
        nothing_yet(canvas, scene, "speed")
        return
    reference = next((r.tokens_per_s for r in timed if r.label == BASELINE), None)
    shown = _shown(timed, canvas.height - 1, scene.selected)
    name_width = max(len(r.label) for r in shown) + 2
    width = max(4, canvas.width - name_width - _FIGURES)
    most = timed[0].tokens_per_s or 1.0
    canvas.text(0, 0, "tokens/s while decoding", scene.palette.dim)
    canvas.right(canvas.width, 0, f"{TIMES} baseline", scene.palette.dim)
    for y, row in enumerate(shown, start=1):
        _draw_bar(canvas, scene, row, y, name_width, width, most, reference)
    if reference:
        column = name_width + min(width - 1, round(reference / most * width))
        for y in range(1, 1 + len(shown)):
            canvas.text(column, y, "│", scene.palette.strong)


def _draw_bar(canvas: Canvas, scene: Scene, row: Row, y: int, left: int, width: int, most: float, reference: float | None) -> None:
    speed = row.tokens_per_s or 0.0
    ink = scene.ink(row.label)
    mark = "◆" if row.label == scene.selected else " "
    canvas.text(0, y, f"{mark}{row.label}"[: left - 1], ink)
    canvas.text(left, y, "▇" * max(1, round(speed / most * width)), Style(color=ink.color))
    canvas.right(canvas.width - 9, y, fixed(speed, 1, 8), scene.palette.strong if mark == "◆" else scene.palette.text)
    if reference:
        canvas.right(canvas.width, y, f"{fixed(speed / reference, 2, 5)}{TIMES}", scene.palette.dim)


def _shown(timed: list[Row], count: int, selected: str | None) -> list[Row]:
    """The fastest that fit, with the reference and the selected method always among them."""
    if len(timed) <= count:
        return timed
    always = [r for r in timed if r.label in (BASELINE, selected)]
    rest = [r for r in timed if r not in always][: max(0, count - len(always))]
    return sorted(always + rest, key=lambda r: -(r.tokens_per_s or 0.0))[:count]
