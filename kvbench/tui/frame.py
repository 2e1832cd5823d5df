"""A framed plot area on a canvas: axes, ticks and titles, and what is drawn between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.style import Style

from kvbench.figures.axes import Scale
from kvbench.formats import plain_number
from kvbench.tui.canvas import Canvas
from kvbench.tui.theme import Palette


@dataclass(frozen=True)
class Frame:
    """The area inside the axes; values become dots through the two scales."""

    canvas: Canvas
    x: Scale
    y: Scale
    left: int
    top: int
    width: int
    height: int

    def dot(self, x: float, y: float) -> tuple[int, int]:
        column = self.left * 2 + round(self.x.fraction(x) * (self.width * 2 - 1))
        row = self.top * 4 + round((1 - self.y.fraction(y)) * (self.height * 4 - 1))
        return column, row

    def cell(self, x: float, y: float) -> tuple[int, int]:
        column, row = self.dot(x, y)
        return column // 2, row // 4

    def path(self, points: Sequence[tuple[float, float]], style: Style, *, every: int = 1) -> None:
        """Join points by straight lines of dots."""
        dots = [self.dot(x, y) for x, y in points]
        for (x0, y0), (x1, y1) in pairwise(dots):
            self.canvas.line(x0, y0, x1, y1, style, every=every)
        if len(dots) == 1:
            self.canvas.dot(*dots[0], style)


Label = Callable[[float], str]


def framed(
    canvas: Canvas, x: Scale, y: Scale, palette: Palette, *, x_title: str, y_title: str, right: int = 0,
    x_label: Label = plain_number, y_label: Label = plain_number,
) -> Frame:  # fmt: skip
    """Draw axes, ticks and titles; give back the area inside. ``right`` cells are kept free for labels."""
    y_ticks = y.ticks(max(2, (canvas.height - 3) // 3))
    left = max([len(y_label(t)) for t in y_ticks], default=1) + 2
    frame = Frame(canvas, x, y, left, 1, max(4, canvas.width - left - right - 1), max(2, canvas.height - 3))
    canvas.text(0, 0, y_title, palette.dim)
    _draw_y(frame, y_ticks, y_label, palette)
    _draw_x(frame, x_title, x_label, palette)
    return frame


def _draw_y(frame: Frame, ticks: Sequence[float], label: Label, palette: Palette) -> None:
    for row in range(frame.top, frame.top + frame.height):
        frame.canvas.text(frame.left - 1, row, "│", palette.line)
    used: set[int] = set()
    for tick in ticks:
        _, row = frame.cell(frame.x.low, tick)
        if row in used:
            continue
        used.add(row)
        frame.canvas.right(frame.left - 1, row, label(tick), palette.dim)
        frame.canvas.text(frame.left - 1, row, "┤", palette.line)
        for column in range(frame.left, frame.left + frame.width):
            frame.canvas.dot(column * 2 + 1, row * 4 + 1, palette.line)


def _draw_x(frame: Frame, title: str, label: Label, palette: Palette) -> None:
    canvas, axis = frame.canvas, frame.top + frame.height
    canvas.text(frame.left - 1, axis, "└" + "─" * frame.width, palette.line)
    canvas.right(frame.left + frame.width + 1, axis + 1, title, palette.dim)
    for tick in frame.x.ticks(max(2, frame.width // 10)):
        column, _ = frame.cell(tick, frame.y.low)
        text = label(tick)
        start = max(frame.left - 1, column - len(text) // 2)
        if canvas.is_free(start - 1, axis + 1, len(text) + 2) or (start == 0 and canvas.is_free(0, axis + 1, len(text) + 1)):
            canvas.text(column, axis, "┬", palette.line)
            canvas.text(start, axis + 1, text, palette.dim)
