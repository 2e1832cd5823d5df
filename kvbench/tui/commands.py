"""What the command palette offers beside Textual's own commands."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from textual.app import App, SystemCommand

from kvbench.tui.plots import PLOTS
from kvbench.tui.table import MethodTable

FIGURES = (
    ("Next figure", "The next heat map or table of the run's evaluators", "figure"),
    ("Previous figure", "The heat map or table before", "figure(-1)"),
    ("Baseline's heat map", "The baseline's in place of the selected method's, and back", "baseline"),
)
PANELS = (
    ("Next theme", "Night, paper, ember", "next_theme"),
    ("Details", "Show or hide the selected method's details", "details"),
    ("Log", "Show or hide the log", "log"),
    ("Replay", "Show an ended run again in time-lapse", "replay"),
    ("Help", "Keys, columns and signs", "help"),
)
"""Title, meaning, and the action that a key may have too."""


def commands(app: App[Any], table: MethodTable) -> Iterator[SystemCommand]:
    """Plots, sort orders and panels by name."""
    plots = [(f"Plot: {plot.title}", "Show this plot", f"plot('{name}')") for name, plot in PLOTS.items()]
    yield from (_acting(app, *each) for each in (*plots, *FIGURES))
    for column in table.sortable:
        yield SystemCommand(f"Sort by {column.title}", column.meaning, partial(table.sort_by, column.key))
    yield SystemCommand("Sort in the plan's order", "As the run goes through the methods", partial(table.sort_by, None))
    yield from (_acting(app, *each) for each in PANELS)


def _acting(app: App[Any], title: str, meaning: str, action: str) -> SystemCommand:
    return SystemCommand(title, meaning, partial(app.run_action, action))
