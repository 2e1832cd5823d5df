"""What evaluators show beyond their columns, under the main table; long lists are cut, and the report has them whole."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kvbench.displays.table import render as render_table
from kvbench.engine.journal import RunFolder
from kvbench.engine.start import DEFAULT_OUTPUT
from kvbench.figures import Figure, Grid, Table
from kvbench.record.state import RunState
from kvbench.record.summary import figures
from kvbench.report.text import WIDTH, draw, grouped

ROWS = 16
"""Rows of a table that are printed, where it has more than the run has methods."""
GRIDS, GRID_ROWS = 8, 12
"""Heat maps of one kind that are printed, and the rows beyond which they are not."""
WHOLE = "sweep"
"""Whose tables are printed whole: they are what the run was for."""


def render_run(state: RunState, run: str) -> str:
    """The main table, then what the evaluators show; ``run`` is what commands call it."""
    return render_table(state) + render(figures(state), run, max(ROWS, len(state.methods)))


def render(found: Mapping[str, Sequence[Figure]], run: str, rows: int = ROWS) -> str:
    """Tables of at most ``rows`` rows, and heat maps, by evaluator, at most 140 columns wide; empty where there are none."""
    left_out: list[str] = []
    parts = []
    for evaluator, shown in found.items():
        for figure in grouped(shown):
            if isinstance(figure, Table):
                cut = figure if evaluator == WHOLE else _cut(figure, rows, left_out)
                parts.append(f"{evaluator}: {figure.title}\n\n{draw(cut)}")
            elif kept := _few(figure, left_out):
                parts.append(f"{evaluator}: {draw(kept)}")  # heat maps say their title with what shades mean
    if left_out:
        lines = textwrap.wrap(f"left out: {'; '.join(left_out)}", WIDTH, subsequent_indent="  ")
        parts.append("\n".join([*lines, f"all of it: kvbench report {run}"]))
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
