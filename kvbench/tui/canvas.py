"""A grid of terminal cells to draw on: text, and lines of braille dots (2 by 4 dots a cell).

Text stands before dots. Where two lines cross one cell, the later one gives its colour.
"""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE = 0x2800
LEVELS = " ▁▂▃▄▅▆▇█"


class Canvas:
    """``width`` by ``height`` cells, (0, 0) at the top left; dots count from there too."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = max(0, width), max(0, height)
        self._text: list[list[str]] = [[""] * self.width for _ in range(self.height)]
        self._dots: list[list[int]] = [[0] * self.width for _ in range(self.height)]
        self._style: list[list[Style | None]] = [[None] * self.width for _ in range(self.height)]

    def text(self, x: int, y: int, text: str, style: Style | None = None) -> None:
        """Write left to right from a cell; what falls outside is cut."""
        if not 0 <= y < self.height:
            return
        for offset, character in enumerate(text):
            if 0 <= x + offset < self.width:
                self._text[y][x + offset] = character
                self._style[y][x + offset] = style

    def right(self, x: int, y: int, text: str, style: Style | None = None) -> None:
        """Write so that the text ends before cell ``x``."""
        self.text(x - len(text), y, text, style)

    def centre(self, y: int, text: str, style: Style | None = None) -> None:
        self.text(max(0, (self.width - len(text)) // 2), y, text, style)

    def dot(self, x: int, y: int, style: Style | None = None) -> None:
        """Set one braille dot; x in [0, 2·width), y in [0, 4·height)."""
        column, row = x // 2, y // 4
        if 0 <= column < self.width and 0 <= row < self.height:
            self._dots[row][column] |= _BITS[y % 4][x % 2]
            if not self._text[row][column]:
                self._style[row][column] = style

    def line(self, x0: int, y0: int, x1: int, y1: int, style: Style | None = None, *, every: int = 1) -> None:
        """A straight line of dots; ``every`` 2 or more makes it dotted."""
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for step in range(0, steps + 1, every):
            self.dot(round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps), style)

    def is_free(self, x: int, y: int, length: int) -> bool:
        """Whether a text of ``length`` from this cell would cover no other text and stay inside."""
        if not 0 <= y < self.height or x < 0 or x + length > self.width:
            return False
        return not any(self._text[y][x : x + length])

    def strips(self) -> list[Strip]:
        return [self._strip(y) for y in range(self.height)]

    def _strip(self, y: int) -> Strip:
        segments: list[Segment] = []
        run, current = "", None
        for character, dots, style in zip(self._text[y], self._dots[y], self._style[y], strict=True):
            if style is not current and run:
                segments.append(Segment(run, current))
                run = ""
            current = style
            run += character or (chr(_BRAILLE + dots) if dots else " ")
        if run:
            segments.append(Segment(run, current))
        return Strip(segments, self.width)


def bar(fraction: float, width: int) -> tuple[str, str]:
    """A thin progress bar's filled and empty parts; together ``width`` cells."""
    halves = round(max(0.0, min(1.0, fraction)) * width * 2)
    filled = "━" * (halves // 2) + ("╸" if halves % 2 else "")
    return filled, "─" * (width - len(filled))


def spark(fractions: list[float]) -> str:
    """Small columns, one a value in [0, 1]; nothing is drawn only for nothing."""
    return "".join(LEVELS[0 if f <= 0 else max(1, min(8, round(f * 8)))] for f in fractions)
