"""What the command palette offers beside Textual's own commands."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from textual.app import SystemCommand

from kvbench.tui.plots import PLOTS
from kvbench.tui.table import MethodTable

if TYPE_CHECKING:
    from kvbench.tui.app import Dashboard


def commands(app: Dashboard) -> Iterator[SystemCommand]:
    """Plots, sort orders and panels by name."""
    for name, plot in PLOTS.items():
        yield SystemCommand(f"Plot: {plot.title}", "Show this plot", partial(app.action_plot, name))
    yield SystemCommand("Next figure", "The next heat map or table of the run's evaluators", partial(app.action_figure, 1))
    yield SystemCommand("Previous figure", "The heat map or table before", partial(app.action_figure, -1))
    yield SystemCommand("Baseline's heat map", "The baseline's in place of the selected method's, and back", app.action_baseline)
    table = app.query_one(MethodTable)
    for column in table.sortable:
        yield SystemCommand(f"Sort by {column.title}", column.meaning, partial(table.sort_by, column.key))
    yield SystemCommand("Sort in the plan's order", "As the run goes through the methods", partial(table.sort_by, None))
    yield SystemCommand("Next theme", "Night, paper, ember", app.action_next_theme)
    yield SystemCommand("Details", "Show or hide the selected method's details", app.action_details)
    yield SystemCommand("Log", "Show or hide the log", app.action_log)
    yield SystemCommand("Replay", "Show an ended run again in time-lapse", app.action_replay)
    yield SystemCommand("Help", "Keys, columns and signs", app.action_help)
