"""Tables as comma-separated values, each cell as it is but for what a spreadsheet would obey; a document is one under the other."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from kvbench.figures.data import Grid, Table, notes_of, title_of

_OBEYED = ("=", "+", "-", "@", "\t", "\r")
_FIGURE = re.compile(r"[-+\d.,eE%×±~∞–\[\]\s]*")
"""Nothing that a sum of would do harm: ``-0.5``, ``+1.2 [+0.3, +2.1]``, a verdict."""


def table(rows: Iterable[Sequence[object]]) -> str:
    """A line for each row, the headings' too; ``None`` is an empty cell."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_harmless(cell) for cell in row] for row in rows)
    return out.getvalue()


def _harmless(cell: object) -> object:
    """Text that would be a formula gets an apostrophe before it, which spreadsheets do not show."""
    is_formula = isinstance(cell, str) and cell.startswith(_OBEYED) and not _FIGURE.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def _part(rows: Iterable[Sequence[object]]) -> str:
    return table(rows).rstrip("\n")


def opening(title: str, warning: str, facts: Sequence[tuple[str, str]]) -> list[str]:
    return [_part([[title], *([[warning]] if warning else []), *facts])]


def heading(title: str) -> str:
    return _part([[title]])


def figure(found: Table | Sequence[Grid]) -> list[str]:
    """A table under its title, or the numbers of heat maps, each under its method."""
    if isinstance(found, Table):
        titles, tables, notes = [found.title], [found], found.notes
    else:
        title = title_of(found) + (" (%)" if found[0].is_share else "")
        titles, tables, notes = [f"{title}: {grid.method}" for grid in found], [grid.numbers for grid in found], notes_of(found)
    parts = [_part([[title], _joined(one.headings), *one.rows]) for title, one in zip(titles, tables, strict=True)]
    return [*parts, *([lines(notes)] if notes else [])]


def _joined(headings: Sequence[str]) -> list[str]:
    return [" ".join(name.split("\n")) for name in headings]


def lines(found: Sequence[str]) -> str:
    return _part([line] for line in found)


def code(text: str) -> str:
    return _part([[text]])


def ending() -> list[str]:
    return []
