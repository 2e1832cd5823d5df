"""What the command palette offers beside Textual's own commands."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from textual.app import SystemCommand

from kvbench.tui.columns import columns
from kvbench.tui.plots import PLOTS
from kvbench.tui.table import MethodTable

if TYPE_CHECKING:
    from kvbench.tui.app import Dashboard


def commands(app: Dashboard) -> Iterator[SystemCommand]:
    """Plots, sort orders and panels by name."""
    for name, (title, _) in PLOTS.items():
        yield SystemCommand(f"Plot: {title}", "Show this plot", partial(app.action_plot, name))
    table = app.query_one(MethodTable)
    for column in columns([]):
        if not column.beside and column.key != "audit":
            yield SystemCommand(f"Sort by {column.title}", column.meaning, partial(table.sort_by, column.key))
    yield SystemCommand("Sort in the plan's order", "As the run goes through the methods", partial(table.sort_by, None))
    yield SystemCommand("Next theme", "Night, paper, ember", app.action_next_theme)
    yield SystemCommand("Details", "Show or hide the selected method's details", app.action_details)
    yield SystemCommand("Log", "Show or hide the log", app.action_log)
    yield SystemCommand("Replay", "Show an ended run again in time-lapse", app.action_replay)
    yield SystemCommand("Help", "Keys, columns and signs", app.action_help)
