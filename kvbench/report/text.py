"""Tables and heat maps as plain text of a given width: what the terminal and ``kvbench report`` both print."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING

from kvbench.figures import Figure, Grid, Table
from kvbench.formats import NONE, fixed, plain_number

if TYPE_CHECKING:
    from kvbench.report.content import Report

WIDTH = 140
LABEL_WIDTH = 26
"""Characters of a row's first cell before it is broken."""
WORDS_WIDTH = 60
"""Characters of any other cell before it is broken."""
HEADING_WIDTH = 9
"""Characters of a heading that are not broken, however narrow its cells."""
GAP = "  "
HEADING_ROOM = 2
"""Columns that tabulate gives a heading beyond its length."""
SHADES = " ░▒▓█"
"""From the bad end of a scale to the good one."""
_DECIMALS = ((100, 0), (10, 1), (1, 2))
"""Least size of a value → decimals; smaller ones have four."""


def draw(found: Figure | Sequence[Grid], width: int = WIDTH) -> str:
    """A table, or heat maps side by side."""
    return draw_table(found, width) if isinstance(found, Table) else draw_grids([found] if isinstance(found, Grid) else found, width)


def grouped(found: Sequence[Figure]) -> Iterator[Table | list[Grid]]:
    """Figures in order; heat maps of one name that follow each other are drawn together."""
    for key, group in groupby(found, key=lambda f: f.name if isinstance(f, Grid) else None):
        if key is None:
            yield from (f for f in group if isinstance(f, Table))
        else:
            yield [f for f in group if isinstance(f, Grid)]


def draw_table(table: Table, width: int = WIDTH) -> str:
    """Aligned columns; those that do not fit beside the others follow in blocks that repeat the words at the left."""
    from tabulate import tabulate

    rows = [[_broken(cell, LABEL_WIDTH if i == 0 else WORDS_WIDTH) for i, cell in enumerate(row)] for row in table.rows]
    broken = [_broken_heading(name, max((_longest(row[i]) for row in rows), default=0)) for i, name in enumerate(table.headings)]
    blocks = []
    for columns in _blocks(broken, rows, width, table.left):
        align = ["left" if i < table.left or is_words(rows, i) else "right" for i in columns]
        body = [[row[i] for i in columns] for row in rows]
        headings = [broken[i] for i in columns]
        blocks.append(tabulate(body, headers=headings, tablefmt="simple", colalign=align if body else None, disable_numparse=True))
    return "\n\n".join([*blocks, *_notes(table.notes, width)])


def _broken_heading(name: str, room: int) -> str:
    """Broken between words where it would be wider than the cells below it."""
    return "\n".join(
        piece for line in name.split("\n") for piece in textwrap.wrap(line, max(room, HEADING_WIDTH), break_long_words=False) or [""]
    )


def is_words(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Whether a column has letters and no digit: set to the left like a name."""
    text = "".join(row[column] for row in rows)
    return any(c.isalpha() for c in text) and not any(c.isdigit() for c in text)


def _blocks(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int, left: int) -> list[list[int]]:
    """Columns by block; in each the first ``left``, or only the first where they leave too little room."""
    sizes = [max(_longest(name) + HEADING_ROOM, *(_longest(row[i]) for row in rows), 0) for i, name in enumerate(headings)]
    lead = list(range(max(1, left)))
    if sum(sizes[i] + len(GAP) for i in lead) > width // 2:
        lead = [0]
    start = sum(sizes[i] for i in lead) + len(GAP) * (len(lead) - 1)
    blocks, used = [list(lead)], start
    for i in range(len(lead), len(headings)):
        if used + len(GAP) + sizes[i] > width and len(blocks[-1]) > len(lead):
            blocks.append(list(lead))
            used = start
        blocks[-1].append(i)
        used += len(GAP) + sizes[i]
    return blocks


def _longest(cell: str) -> int:
    return max(map(len, cell.split("\n")))


_PARTS = re.compile(r"(?<=[,:])(?=\S)|(?<=\S)(?=[+@])")
"""Where a label such as ``snapkv:window=8,kernel=3+int4`` may be broken."""


def _broken(text: str, width: int) -> str:
    """A long cell on several lines, broken between words and the parts of a label."""
    if all(len(line) <= width for line in text.split("\n")):
        return text
    return "\n".join(piece for line in text.split("\n") for piece in _wrapped(line, width))


def _wrapped(line: str, width: int) -> list[str]:
    mark = "\u200b"  # stands where a break leaves nothing behind
    pieces = textwrap.wrap(_PARTS.sub(f"{mark} ", line), width, break_on_hyphens=False, subsequent_indent="  ")
    return [piece.replace(f"{mark} ", "").replace(mark, "") for piece in pieces]


def _notes(notes: Sequence[str], width: int) -> list[str]:
    lines = [line for note in notes for line in textwrap.wrap(note, width, subsequent_indent="  ")]
    return ["\n".join(lines)] if lines else []


def draw_grids(grids: Sequence[Grid], width: int = WIDTH) -> str:
    """Heat maps of one kind, as many beside each other as fit, under one line that says how shades are read."""
    blocks = [_grid(grid) for grid in grids]
    lines: list[str] = []
    row: list[list[str]] = []
    for block in [*blocks, None]:
        if block is None or (row and sum(len(b[0]) + 4 for b in row) + len(block[0]) > width):
            lines += [(" " * 4).join(parts).rstrip() for parts in _side_by_side(row)] + [""]
            row = []
        if block is not None:
            row.append(block)
    notes = _notes(list(dict.fromkeys(note for grid in grids for note in grid.notes)), width)
    return "\n".join([_legend(grids), "", *lines]).rstrip() + "".join(f"\n{note}" for note in notes)


def _side_by_side(row: Sequence[list[str]]) -> Iterator[tuple[str, ...]]:
    widths = [max(map(len, block)) for block in row]
    for parts in zip_longest(*row, fillvalue=""):
        yield tuple(part.ljust(width) for part, width in zip(parts, widths, strict=True))


def _legend(grids: Sequence[Grid]) -> str:
    grid = grids[0]
    low, high = (written(grid, value) for value in (grid.low, grid.high))
    bad, good = (low, high) if grid.good == "high" else (high, low)
    unit = ", in %" if is_share(grid) else ""
    return f"{title_of(grids)}{unit}; shades from {bad} (empty) to {good} (full)"


def title_of(grids: Sequence[Grid]) -> str:
    """One title for heat maps of one kind: their own, where it names the method, with that left open."""
    own = {grid.title for grid in grids}
    shared = {grid.title.replace(grid.method, "the method") for grid in grids}
    return grids[0].title if len(own) == 1 or len(shared) > 1 else shared.pop()


def _grid(grid: Grid) -> list[str]:
    cells = [[f"{written(grid, value)}{shade(grid, value)}" for value in row] for row in grid.values]
    side = [f"{grid.row_name} \\ {grid.column_name}" if grid.row_name and grid.column_name else grid.row_name, *grid.rows]
    left = max(map(len, side))
    sizes = [max(len(name) + 1, *(len(row[i]) for row in cells)) for i, name in enumerate(grid.columns)]
    header = f"{side[0]:<{left}}" + "".join(f"{GAP}{name:>{n - 1}} " for name, n in zip(grid.columns, sizes, strict=True))
    body = [
        f"{name:<{left}}" + "".join(f"{GAP}{cell:>{n}}" for cell, n in zip(row, sizes, strict=True))
        for name, row in zip(grid.rows, cells, strict=True)
    ]
    lines = [*_broken(grid.method, max(len(header), LABEL_WIDTH)).split("\n"), header, *body]
    return [line.ljust(max(map(len, lines))) for line in lines]


def is_share(grid: Grid) -> bool:
    """Its scale is 0–1: read as per cent."""
    return (grid.low, grid.high) == (0.0, 1.0)


def written(grid: Grid, value: float | None) -> str:
    """A cell's value as text."""
    if value is None:
        return NONE
    if is_share(grid):
        return fixed(100 * value, 0)
    if value == int(value) and abs(value) < 1000:
        return plain_number(value)
    return fixed(value, next((decimals for least, decimals in _DECIMALS if abs(value) >= least), 4))


def goodness(grid: Grid, value: float | None) -> float | None:
    """Where a value lies between the bad end of the scale (0) and the good one (1)."""
    if value is None:
        return None
    share = (value - grid.low) / (grid.high - grid.low) if grid.high > grid.low else 1.0 if grid.good == "high" else 0.0
    share = min(1.0, max(0.0, share))
    return share if grid.good == "high" else 1.0 - share


def shade(grid: Grid, value: float | None) -> str:
    """One character that is the fuller the better."""
    at = goodness(grid, value)
    return " " if at is None else SHADES[min(len(SHADES) - 1, int(at * len(SHADES)))]


def text(report: Report, width: int = WIDTH) -> str:
    """A whole report; lines of facts are wrapped, nothing is left out."""
    left = max((len(name) for name, _ in report.facts), default=0)
    indent = " " * (left + 2)
    head = [line for name, value in report.facts for line in textwrap.wrap(f"{name:<{left}}  {value}", width, subsequent_indent=indent)]
    parts = [_underlined(report.title, "="), *([report.warning] if report.warning else []), "\n".join(head)]
    for section in report.sections:
        parts.append(_underlined(section.title, "-"))
        for figure in grouped(section.figures):
            parts.append(f"{figure.title}\n\n{draw(figure, width)}" if isinstance(figure, Table) else draw(figure, width))
        if section.lines:
            parts.append("\n".join(line for note in section.lines for line in textwrap.wrap(note, width, subsequent_indent="  ")))
        if section.code:
            parts.append(section.code)
    return "\n\n".join(parts) + "\n"


def _underlined(title: str, mark: str) -> str:
    return f"{title}\n{mark * len(title)}"
