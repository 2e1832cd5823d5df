"""Tables and heat maps as plain text of a given width: what the terminal and ``kvbench report`` both print."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from kvbench.figures.data import Grid, Table, notes_of, title_of
from kvbench.figures.widths import GAP, LABEL_WIDTH, WIDTH, broken, fitted, folded

SHADES = " ░▒▓█"
"""From the bad end of a scale to the good one."""
_SIDES = {"l": "left", "r": "right"}

ENDING = ""


def opening(title: str, warning: str, facts: Sequence[tuple[str, str]]) -> list[str]:
    """A document's title and facts, names and values in two columns."""
    left = max((len(name) for name, _ in facts), default=0)
    indent = " " * (left + 2)
    head = [line for name, value in facts for line in textwrap.wrap(f"{name:<{left}}  {value}", WIDTH, subsequent_indent=indent)]
    return [_underlined(title, "="), *([warning] if warning else []), "\n".join(head)]


def heading(title: str) -> str:
    return _underlined(title, "-")


def _underlined(title: str, mark: str) -> str:
    return f"{title}\n{mark * len(title)}"


def figure(found: Table | Sequence[Grid], width: int = WIDTH) -> list[str]:
    """A table under its title, or heat maps under what their shades mean."""
    return [found.title, draw_table(found, width)] if isinstance(found, Table) else [draw_grids(found, width)]


def lines(found: Sequence[str]) -> str:
    return folded(found)


def code(text: str) -> str:
    return text


def draw_table(table: Table, width: int = WIDTH) -> str:
    """Aligned columns; those that do not fit beside the others follow in blocks that repeat the words at the left."""
    return "\n\n".join([*map(columns, fitted(table, width)), *_notes(table.notes, width)])


def columns(table: Table) -> str:
    """Headings, a rule and rows, each cell as it is: the one place that lines text up."""
    from tabulate import tabulate

    sides = [_SIDES[side] for side in table.aligned] if table.rows else None
    return tabulate(table.rows, headers=table.headings, tablefmt="simple", colalign=sides, disable_numparse=True)


def _notes(notes: Sequence[str], width: int) -> list[str]:
    return [folded(notes, width)] if notes else []


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
    return "\n".join([_legend(grids), "", *lines]).rstrip() + "".join(f"\n{note}" for note in _notes(notes_of(grids), width))


def _side_by_side(row: Sequence[list[str]]) -> Iterator[tuple[str, ...]]:
    widths = [max(map(len, block)) for block in row]
    for parts in zip_longest(*row, fillvalue=""):
        yield tuple(part.ljust(width) for part, width in zip(parts, widths, strict=True))


def _legend(grids: Sequence[Grid]) -> str:
    bad, good = grids[0].ends
    return f"{title_of(grids)}; shades from {bad} (empty) to {good} (full)"


def _grid(grid: Grid) -> list[str]:
    cells = [[f"{grid.written(value)}{shade(grid, value)}" for value in row] for row in grid.values]
    side = [f"{grid.row_name} \\ {grid.column_name}" if grid.row_name and grid.column_name else grid.row_name, *grid.rows]
    left, gap = max(map(len, side)), " " * GAP
    sizes = [max(len(name) + 1, *(len(row[i]) for row in cells)) for i, name in enumerate(grid.columns)]
    header = f"{side[0]:<{left}}" + "".join(f"{gap}{name:>{n - 1}} " for name, n in zip(grid.columns, sizes, strict=True))
    body = [
        f"{name:<{left}}" + "".join(f"{gap}{cell:>{n}}" for cell, n in zip(row, sizes, strict=True))
        for name, row in zip(grid.rows, cells, strict=True)
    ]
    lines = [*broken(grid.method, max(len(header), LABEL_WIDTH)).split("\n"), header, *body]
    return [line.ljust(max(map(len, lines))) for line in lines]


def shade(grid: Grid, value: float | None) -> str:
    """One character that is the fuller the better."""
    at = grid.goodness(value)
    return " " if at is None else SHADES[min(len(SHADES) - 1, int(at * len(SHADES)))]
