"""What a reader sees at the end of a run: the main table, what it was measured on, and what went wrong."""

from __future__ import annotations

from collections.abc import Sequence

from kvbench.metrics.row import Row
from kvbench.record.state import RunState
from kvbench.record.summary import rows
from kvbench.report.overview import budget_notes, failures, left_out, main_table, missing, rounding_notes, sameness_notes, shortened
from kvbench.report.overview import header as full_header
from kvbench.report.text import WIDTH, draw_table


def render(state: RunState) -> str:
    """Header, table and notes, at most 140 columns wide; columns that nothing filled are left out."""
    found = rows(state)
    parts = ["\n".join(header(state)), draw_table(main_table(found)), "\n".join(notes(state, found))]
    return "\n\n".join(part for part in parts if part) + "\n"


def header(state: RunState) -> list[str]:
    """Model, text and numbers of the run, two lines."""
    return [shortened(line, WIDTH) for line in full_header(state)]


def notes(state: RunState, found: Sequence[Row]) -> list[str]:
    """What failed, what budgets came to, and what is missing."""
    without: dict[str, list[str]] = {}
    for evaluator, what, _ in left_out(state):
        without.setdefault(evaluator, []).append(what)
    lines = [*failures(state, found), *rounding_notes(found), *sameness_notes(found), *budget_notes(found)]
    lines += [f"{evaluator} went without {', '.join(what)}: kvbench report says why" for evaluator, what in without.items()]
    return [shortened(line, WIDTH) for line in lines] + missing(state)
