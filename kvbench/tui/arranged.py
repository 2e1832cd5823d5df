"""The dashboard's panels: which are shown, how they share the screen, and what the keys do with them."""

from __future__ import annotations

from textual.app import App, ComposeResult
from textual.containers import Container, Vertical
from textual.events import Resize
from textual.widgets import Footer

from kvbench.tui.heading import Header
from kvbench.tui.outcome import Outcome
from kvbench.tui.panels import DetailsPanel, LogPanel, PlotPanel
from kvbench.tui.plots import PLOTS
from kvbench.tui.screens import Help
from kvbench.tui.table import MethodTable
from kvbench.tui.theme import THEMES, Palette

COMPACT = (110, 30)
"""A terminal narrower or lower than this shows one panel at a time."""


class Arranged(App[Outcome]):
    """Header, table, plot, details and log, with nothing in them yet.

    Args:
        run: Name of the run.
    """

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (COMPACT[0], "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (COMPACT[1], "-medium"), (44, "-tall")]  # noqa: RUF012

    def __init__(self, run: str) -> None:
        super().__init__()
        self._palette = Palette.of(self._variables_of(THEMES[0].name), True)
        self._compact_panel, self._details_on, self._log_on, self._by_factor = "plot", True, False, False
        self._extent = self.size
        self._header, self._table = Header(run, id="header"), MethodTable(id="table")
        self._plot, self._details, self._log_panel = PlotPanel(id="plot"), DetailsPanel(id="details"), LogPanel(id="log")
        self._bottom, self._zoomed = Container(id="bottom"), False

    def _variables_of(self, name: str) -> dict[str, str]:
        for theme in THEMES:
            if theme.name not in self.available_themes:
                self.register_theme(theme)
        return self.available_themes[name].to_color_system().generate()

    def compose(self) -> ComposeResult:
        yield self._header
        yield self._table
        with Vertical(id="lower"):
            with self._bottom:
                yield self._plot
                yield self._details
            yield self._log_panel
        yield Footer(show_command_palette=True)

    def _draw_panels(self) -> None:
        """Draw the panels that can be seen."""
        raise NotImplementedError

    @property
    def _compact(self) -> bool:
        return self._extent.width < COMPACT[0] or self._extent.height < COMPACT[1]

    def on_resize(self, event: Resize) -> None:
        self._extent = event.size
        self._lay_out()

    def _lay_out(self) -> None:
        """Show the panels that fit and were asked for."""
        one = self._compact_panel if self._compact else None
        self._table.display = not self._zoomed
        self._plot.display = one in (None, "plot")
        self._details.display = one == "details" or (one is None and self._details_on and not self._zoomed)
        self._log_panel.display = one == "log" or (one is None and self._log_on)
        self._bottom.display = one != "log"
        self.call_after_refresh(self._draw_panels)

    def action_plot(self, name: str) -> None:
        self._compact_panel = "plot"
        self._plot.choose(name)
        self._lay_out()

    def action_next_plot(self, by: int = 1) -> None:
        names = list(PLOTS)
        shown = self._plot
        self.action_plot(names[(names.index(shown.plot) + by) % len(names)] if shown.display else shown.plot)

    def action_sort(self) -> None:
        self._table.cycle_sort()

    def action_reverse(self) -> None:
        self._table.reverse_sort()

    def action_details(self) -> None:
        if self._compact:
            self._compact_panel = "plot" if self._compact_panel == "details" else "details"
        else:
            self._details_on = not self._details_on
        self._lay_out()

    def action_log(self) -> None:
        if self._compact:
            self._compact_panel = "plot" if self._compact_panel == "log" else "log"
        else:
            self._log_on = not self._log_on
        self._lay_out()

    def action_zoom(self) -> None:
        self._zoomed = not self._zoomed
        self._lay_out()

    def action_axis(self) -> None:
        self._by_factor = not self._by_factor
        self.action_plot("pareto")

    def action_figure(self, by: int = 1) -> None:
        self._plot.next_figure(by)

    def action_baseline(self) -> None:
        self._plot.toggle_baseline()

    def action_scroll_figure(self, down: int, across: int) -> None:
        self._plot.scroll(down, across)

    def action_next_theme(self) -> None:
        names = [theme.name for theme in THEMES]
        self.theme = names[(names.index(self.theme) + 1) % len(names)] if self.theme in names else names[0]

    def action_help(self) -> None:
        self.push_screen(Help(self._palette))
