"""A grid of terminal cells to draw on: text, and lines of braille dots (2 by 4 dots a cell).

Text stands before dots. Where two lines cross one cell, the later one gives its colour.
"""

from __future__ import annotations

from rich.cells import get_character_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE = 0x2800
LEVELS = " ▁▂▃▄▅▆▇█"
_COVERED = "\0"
"""The right half of a character that is two cells wide."""


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
        if not text.isascii():
            self._wide(x, y, text, style)
            return
        for offset, character in enumerate(text):
            self._put(x + offset, y, character, style)

    def _wide(self, x: int, y: int, text: str, style: Style | None) -> None:
        """Text whose characters may take no cell of their own, or two."""
        for character in text:
            size = get_character_cell_size(character)
            if size == 0:
                self._combine(x - 1, y, character)
            elif size == 2 and 0 <= x < self.width - 1:
                self._put(x, y, character, style)
                self._put(x + 1, y, _COVERED, style)
            elif size:
                self._put(x, y, character if size == 1 else " ", style)
            x += size

    def _combine(self, x: int, y: int, accent: str) -> None:
        """Add an accent to the character that ends in this cell, if one does."""
        x -= 1 if 0 < x < self.width and self._text[y][x] == _COVERED else 0
        if 0 <= x < self.width and self._text[y][x]:
            self._text[y][x] += accent

    def _put(self, x: int, y: int, character: str, style: Style | None) -> None:
        if 0 <= x < self.width:
            self._text[y][x] = character
            self._style[y][x] = style

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
            if character != _COVERED:
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
