"""What a reader sees at a run's end: the main table with what it was measured on and what went wrong, then what evaluators show.

Long lists are cut, and the report has them whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kvbench.engine.journal import RunFolder
from kvbench.engine.start import DEFAULT_OUTPUT
from kvbench.figures import Figure, Grid, Table
from kvbench.figures.data import grouped
from kvbench.figures.terminal import draw_table, figure
from kvbench.figures.widths import WIDTH, folded
from kvbench.metrics.row import Row
from kvbench.record.state import RunState
from kvbench.record.summary import figures, rows
from kvbench.report.overview import budget_notes, failures, left_out, main_table, missing, rounding_notes, sameness_notes, shortened
from kvbench.report.overview import header as full_header

ROWS = 16
"""Rows of a table that are printed, where it has more than the run has methods."""
GRIDS, GRID_ROWS = 8, 12
"""Heat maps of one kind that are printed, and the rows beyond which they are not."""
WHOLE = "sweep"
"""Whose tables are printed whole: they are what the run was for."""


def render_run(state: RunState, run: str) -> str:
    """The main table, then what the evaluators show; ``run`` is what commands call it."""
    return render(state) + _shown(figures(state), run, max(ROWS, len(state.methods)))


def render(state: RunState) -> str:
    """Header, table and notes, at most 140 columns wide; columns that nothing filled are left out."""
    found = rows(state)
    parts = ["\n".join(header(state)), draw_table(main_table(found)), "\n".join(_notes(state, found))]
    return "\n\n".join(part for part in parts if part) + "\n"


def header(state: RunState) -> list[str]:
    """Model, text and numbers of the run, two lines."""
    return [shortened(line, WIDTH) for line in full_header(state)]


def _notes(state: RunState, found: Sequence[Row]) -> list[str]:
    """What failed, what budgets came to, and what is missing."""
    without: dict[str, list[str]] = {}
    for evaluator, what, _ in left_out(state):
        without.setdefault(evaluator, []).append(what)
    lines = [*failures(state, found), *rounding_notes(found), *sameness_notes(found), *budget_notes(found)]
    lines += [f"{evaluator} went without {', '.join(what)}: kvbench report says why" for evaluator, what in without.items()]
    return [shortened(line, WIDTH) for line in lines] + missing(state)


def _shown(found: Mapping[str, Sequence[Figure]], run: str, most: int) -> str:
    """Tables of at most ``most`` rows, and heat maps, by evaluator; empty where there are none."""
    left_out: list[str] = []
    parts = []
    for evaluator, shown in found.items():
        for one in grouped(shown):
            if isinstance(one, Table):
                kept: Table | list[Grid] = one if evaluator == WHOLE else _cut(one, most, left_out)
            else:
                kept = _few(one, left_out)
            if kept:
                parts.append(f"{evaluator}: " + "\n\n".join(figure(kept)))
    if left_out:
        parts.append(folded([f"left out: {'; '.join(left_out)}"]) + f"\nall of it: kvbench report {run}")
    return "".join(f"\n{part}\n" for part in parts)


def _cut(table: Table, rows: int, left_out: list[str]) -> Table:
    """The first rows; how many are not shown goes to ``left_out``."""
    if len(table.rows) <= rows:
        return table
    left_out.append(_counted(len(table.rows) - rows, "row", table.name))
    return replace(table, rows=table.rows[:rows])


def _few(grids: Sequence[Grid], left_out: list[str]) -> list[Grid]:
    """The first of those that are not too tall."""
    kept = [grid for grid in grids if len(grid.rows) <= GRID_ROWS][:GRIDS]
    if len(kept) < len(grids):
        left_out.append(_counted(len(grids) - len(kept), "heat map", grids[0].name))
    return kept


def _counted(count: int, what: str, name: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''} of {name}"


def called(folder: RunFolder) -> str:
    """What commands call a run, from this folder."""
    return folder.name if folder.path.parent == DEFAULT_OUTPUT else str(folder.path)
