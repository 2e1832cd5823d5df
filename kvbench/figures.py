"""What an evaluator has to show beyond its columns: tables and heat maps, as plain data that any display draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
    """

    name: str
    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    notes: Sequence[str] = ()
    factors: bool = False


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


Figure = Table | Grid
