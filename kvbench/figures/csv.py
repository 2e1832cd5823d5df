"""Tables as comma-separated values, each cell as it is but for what a spreadsheet would obey."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

_OBEYED = ("=", "+", "-", "@", "\t", "\r")
_FIGURE = re.compile(r"[-+\d.,eE%×±~∞–\[\]\s]*")
"""Nothing that a sum of would do harm: ``-0.5``, ``+1.2 [+0.3, +2.1]``, a verdict."""


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A line of headings, then one a row; ``None`` is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return out.getvalue()


def _harmless(cell: object) -> object:
    """Text that would be a formula gets an apostrophe before it, which spreadsheets do not show."""
    is_formula = isinstance(cell, str) and cell.startswith(_OBEYED) and not _FIGURE.fullmatch(cell)
    return f"'{cell}" if is_formula else cell
