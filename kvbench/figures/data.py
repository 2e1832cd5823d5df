"""What an evaluator has to show beyond its columns: tables and heat maps, as plain data that any writer writes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from kvbench.formats import NONE, fixed, plain_number

_DECIMALS = ((100, 0), (10, 1), (1, 2))
"""Least size of a value → decimals; smaller ones have four."""


@dataclass(frozen=True)
class Table:
    """Rows of text under headings.

    Attributes:
        name: Short and stable, for files and keys (``tasks``); unique within its evaluator.
        title: What it shows, one line.
        headings: One a column. rows: Cells as they are to be read; ``kvbench.formats`` writes numbers.
        left: How many of the first columns are words, set to the left; the others are figures.
        notes: What a reader must know: sizes, intervals, the correction that was made, what was left out.
        factors: It shows how many times smaller something is stored, and a reader must know of what (:mod:`kvbench.metrics.factors`).
        sides: ``l`` or ``r`` for each column, where ``left`` and the cells do not say it.
    """

    name: str
    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    notes: Sequence[str] = ()
    factors: bool = False
    sides: str = ""

    @property
    def aligned(self) -> str:
        """``l`` or ``r`` for each column; one that has letters and no digit is set to the left like a name."""
        return self.sides or "".join("l" if i < self.left or self._is_words(i) else "r" for i in range(len(self.headings)))

    def _is_words(self, column: int) -> bool:
        text = "".join(row[column] for row in self.rows)
        return any(c.isalpha() for c in text) and not any(c.isdigit() for c in text)

    def of(self, columns: Sequence[int]) -> Table:
        """Some of its columns, without notes."""
        headings, *rows = ([row[i] for i in columns] for row in (self.headings, *self.rows))
        return replace(self, headings=headings, rows=rows, sides="".join(map(self.aligned.__getitem__, columns)), notes=())


@dataclass(frozen=True)
class Grid:
    """One heat map: a value for each row and column.

    Attributes:
        name: Short and stable; unique within its evaluator together with ``method``.
        title: What it shows, one line. method: Row label of the method that it is of.
        rows, columns: Labels. row_name, column_name: What they are (``depth``, ``tokens``).
        values: ``[rows][columns]``; ``None`` is "not measured (yet)".
        low, high: The ends of the scale; high is good where ``good`` is ``high``.
        notes: What a reader must know. factors: As a table's.
    """

    name: str
    title: str
    method: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    row_name: str = ""
    column_name: str = ""
    low: float = 0.0
    high: float = 1.0
    good: str = "high"
    notes: Sequence[str] = ()
    factors: bool = False

    @property
    def is_share(self) -> bool:
        """Its scale is 0–1: read as per cent."""
        return (self.low, self.high) == (0.0, 1.0)

    @property
    def ends(self) -> tuple[str, str]:
        """The values at the bad and at the good end of the scale."""
        low, high = self.written(self.low), self.written(self.high)
        return (low, high) if self.good == "high" else (high, low)

    def written(self, value: float | None) -> str:
        """A cell's value as text."""
        if value is None:
            return NONE
        if self.is_share:
            return fixed(100 * value, 0)
        if math.isfinite(value) and value == int(value) and abs(value) < 1000:
            return plain_number(value)
        return fixed(value, next((decimals for least, decimals in _DECIMALS if abs(value) >= least), 4))

    def share(self, value: float) -> float:
        """Where a value lies between the ends of the scale, 0 to 1; what is no number lies at the bad end."""
        if not math.isfinite(value):
            return 1.0 if self.good == "low" else 0.0
        return min(1.0, max(0.0, (value - self.low) / ((self.high - self.low) or 1.0)))

    def goodness(self, value: float | None) -> float | None:
        """Where a value lies between the bad end of the scale (0) and the good one (1)."""
        if value is None:
            return None
        if self.high <= self.low and math.isfinite(value):
            return 1.0  # all values are one: none is worse
        return self.share(value) if self.good == "high" else 1.0 - self.share(value)

    @property
    def numbers(self) -> Table:
        """The same as a table."""
        corner = " ╲ ".join(filter(None, (self.row_name, self.column_name)))
        rows = [[name, *map(self.written, row)] for name, row in zip(self.rows, self.values, strict=True)]
        return Table(self.name, self.method, [corner, *self.columns], rows, sides="l" + "r" * len(self.columns))


Figure = Table | Grid


def grouped(found: Sequence[Figure]) -> Iterator[Table | list[Grid]]:
    """Figures in order; heat maps of one name that follow each other are drawn together."""
    for key, group in groupby(found, key=lambda f: f.name if isinstance(f, Grid) else None):
        if key is None:
            yield from (f for f in group if isinstance(f, Table))
        else:
            yield [f for f in group if isinstance(f, Grid)]


def title_of(grids: Sequence[Grid]) -> str:
    """One title for heat maps of one kind: their own, where it names the method, with that left open; and their unit."""
    own = {grid.title for grid in grids}
    shared = {grid.title.replace(grid.method, "the method") for grid in grids}
    title = grids[0].title if len(own) == 1 or len(shared) > 1 else shared.pop()
    return title + (", in %" if grids[0].is_share else "")


def notes_of(grids: Sequence[Grid]) -> list[str]:
    """What a reader must know of any of them, said once."""
    return list(dict.fromkeys(note for grid in grids for note in grid.notes))


def tabled(found: Table | Sequence[Grid]) -> tuple[str, list[tuple[str, Table]], Sequence[str]]:
    """Title, tables each with the method that it is of, if it is of one, and notes: heat maps are tables of their numbers."""
    if isinstance(found, Table):
        return found.title, [("", found)], found.notes
    return title_of(found), [(grid.method, grid.numbers) for grid in found], notes_of(found)
