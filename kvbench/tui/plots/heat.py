"""A heat map's cells: their colour, their text at the width there is, and the scale that explains them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from rich.style import Style

from kvbench.figures import Grid
from kvbench.figures.colours import blend
from kvbench.formats import fixed
from kvbench.tui.canvas import LEVELS, Canvas
from kvbench.tui.theme import Palette

Mode = Literal["glyph", "short", "full"]
"""What stands in a cell: a column whose height is the value, ``.87``, or ``0.87``."""
MODES: tuple[Mode, ...] = ("glyph", "short", "full")
UNKNOWN = "·"
CLOSE = 0.05
"""Share of the scale within which values lie close together."""


@dataclass(frozen=True)
class Look:
    """How cells look: (width, height), what stands in them, and with how many decimals."""

    size: tuple[int, int]
    mode: Mode
    decimals: int


@lru_cache(maxsize=512)
def _colour(step: int, good: str, palette: Palette) -> str:
    """The colour of a 64th of the scale: from bad over middling to good, or from faint to strong where neither end is good."""
    at = step / 64
    if good not in ("high", "low"):
        return blend(palette.faint, palette.primary, at)
    at = at if good == "high" else 1 - at
    bad, middle, best = palette.error, palette.accent, palette.success
    return blend(blend(bad, middle, at * 2) if at < 0.5 else blend(middle, best, at * 2 - 1), palette.background, 0.08)


def colour(grid: Grid, value: float, palette: Palette) -> str:
    """``#rrggbb`` of a value."""
    return _colour(round(grid.share(value) * 64), grid.good, palette)


def decimals(grids: Sequence[Grid]) -> int:
    """How many decimals tell values apart: two for a scale of 0 to 1, one more if all values lie close together on their scale."""
    values = [v for grid in grids for row in grid.values for v in row if v is not None and math.isfinite(v)]
    span = abs(grids[0].high - grids[0].low) or 1.0
    needed = max(0, _places(span))
    spread = max(values) - min(values) if values else 0.0
    return max(needed, min(needed + 1, _places(spread))) if 0 < spread < span * CLOSE else needed


def _places(span: float) -> int:
    return 2 - math.floor(math.log10(span) + 1e-9)


def full(value: float, places: int) -> str:
    """A value with its decimals; by powers of ten where they would be too many."""
    return fixed(value, places) if places <= 4 or not math.isfinite(value) else f"{value:.0e}"


def short(value: float, places: int) -> str:
    """Three characters where two decimals say enough: ``.87``, ``1.0``."""
    text = full(value, places)
    if text.startswith("0.") and len(text) == 4:
        return text[1:]
    return text[:3] if text == "1.00" else text


def mode_for(grids: Sequence[Grid], width: int, places: int) -> Mode:
    """The most telling content that fits cells of ``width`` with a space between them."""
    values = [v for grid in grids for row in grid.values for v in row if v is not None] + [grids[0].low, grids[0].high]
    if max(len(full(v, places)) for v in values) < width:
        return "full"
    return "short" if max(len(short(v, places)) for v in values) < width else "glyph"


def draw_cell(canvas: Canvas, at: tuple[int, int], grid: Grid, value: float | None, look: Look, palette: Palette) -> None:
    """One cell from its upper left corner."""
    (x, y), (width, height) = at, look.size
    if value is None:
        canvas.text(x + (width - 1) // 2, y + (height - 1) // 2, UNKNOWN, palette.dim)
        return
    ground = colour(grid, value, palette)
    if look.mode == "glyph":
        style = _paint(ground, blend(palette.background, ground, 0.22))
        texts = [block * width for block in _pillar(grid.share(value), height)]
    else:
        style, figure = _paint(palette.background, ground), (full if look.mode == "full" else short)(value, look.decimals)
        texts = [" " * width] * height
        texts[(height - 1) // 2] = figure.rjust((width + len(figure) + 1) // 2).ljust(width)
    for row, text in enumerate(texts):
        canvas.text(x, y + row, text, style)


def _pillar(fraction: float, height: int) -> list[str]:
    """A column of blocks, top first, that fills a fraction of ``height`` lines; the least that is seen is an eighth of one."""
    eighths = max(1, round(fraction * 8 * height))
    return [LEVELS[max(0, min(8, eighths - 8 * below))] for below in reversed(range(height))]


@lru_cache(maxsize=512)
def _paint(ink: str, ground: str) -> Style:
    return Style(color=ink, bgcolor=ground)


def draw_scale(canvas: Canvas, x: int, y: int, width: int, grid: Grid, mode: Mode, palette: Palette) -> None:
    """The scale from its lowest to its highest colour, with the heights that stand for them where cells show no figures."""
    for at in range(width):
        value = grid.low + (grid.high - grid.low) * at / max(1, width - 1)
        ground = colour(grid, value, palette)
        if mode == "glyph":
            canvas.text(x + at, y, _pillar(grid.share(value), 1)[0], palette.ink(ground))
        else:
            canvas.text(x + at, y, "█", _paint(ground, ground))


def mean(grid: Grid) -> float | None:
    """Over the cells that are measured."""
    values = [v for row in grid.values for v in row if v is not None and math.isfinite(v)]
    return sum(values) / len(values) if values else None


def turned(grid: Grid) -> Grid:
    """The same with rows and columns changed over."""
    values = [[row[at] for row in grid.values] for at in range(len(grid.columns))]
    return replace(
        grid, rows=grid.columns, columns=grid.rows, row_name=grid.column_name, column_name=grid.row_name, values=values
    )  # fmt: skip


def unmeasured(grid: Grid, method: str) -> Grid:
    """The same grid of another method, with nothing in it."""
    return replace(grid, method=method, values=[[None] * len(grid.columns) for _ in grid.rows], notes=())
