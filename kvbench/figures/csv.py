"""Tables as comma-separated values, each cell as it is but for what a spreadsheet would obey; a document is one under the other."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from kvbench.figures.data import Grid, Table, tabled

ENDING = ""
_OBEYED = ("=", "+", "-", "@", "\t", "\r", "\n")
_FIGURE = re.compile(r"[-+\d.,eE%×±~∞–\[\]\s]*")
"""Nothing that a sum of would do harm: ``-0.5``, ``+1.2 [+0.3, +2.1]``, a verdict."""


def table(rows: Iterable[Iterable[object]]) -> str:
    """A line for each row, the headings' too; ``None`` is an empty cell."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_harmless(cell) for cell in row] for row in rows)
    return out.getvalue()


def _harmless(cell: object) -> object:
    """Text that would be a formula gets an apostrophe before it, which spreadsheets do not show."""
    is_formula = isinstance(cell, str) and cell.startswith(_OBEYED) and not _FIGURE.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def _part(rows: Iterable[Iterable[object]]) -> str:
    return table(rows).rstrip("\n")


def opening(title: str, warning: str, facts: Sequence[tuple[str, str]]) -> list[str]:
    return [_part([[title], *([[warning]] if warning else []), *facts])]


def heading(title: str) -> str:
    return _part([[title]])


def figure(found: Table | Sequence[Grid]) -> list[str]:
    """A table under its title, or the numbers of heat maps, each under its method."""
    title, tables, notes = tabled(found)
    parts = [_part([[f"{title}: {of}" if of else title], map(_flat, one.headings), *one.rows]) for of, one in tables]
    return [*parts, *([lines(notes)] if notes else [])]


def _flat(heading: str) -> str:
    return " ".join(heading.split())


def lines(found: Sequence[str]) -> str:
    return _part([line] for line in found)


def code(text: str) -> str:
    return _part([[text]])
