"""The dashboard: a reader of a run's journal that draws at most four times a second."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import Footer

from kvbench.engine.journal import RunFolder
from kvbench.tui import Outcome
from kvbench.tui.colours import method_colours
from kvbench.tui.commands import commands
from kvbench.tui.feed import LapseFeed
from kvbench.tui.header import Header
from kvbench.tui.panels import DetailsPanel, LogPanel, PlotPanel
from kvbench.tui.plots import PLOTS, Scene, opening
from kvbench.tui.reading import Reading
from kvbench.tui.screens import ConfirmCancel, Help
from kvbench.tui.svg import tidy
from kvbench.tui.table import MethodTable
from kvbench.tui.theme import THEMES, Palette

POLL = 0.4
"""Seconds between looks at the journal."""
PAUSE = (0.25, 2.0)
"""Least and most seconds between two drawings; between them, ``SHARE`` rules."""
SHARE = 0.025
"""Share of one core that drawing may take, so that the benchmark keeps its cores."""
DEAR = 10
"""A drawing of t seconds of processor time (very many samples) is followed by at least DEAR · t seconds without one."""
SILENCE = 5.0
"""Seconds without an event after which the run's owner is looked for."""
COMPACT = (110, 30)
"""A terminal narrower or lower than this shows one panel at a time."""


class Dashboard(App[Outcome]):
    """Follows one run.

    Args:
        folder: The run's folder.
        live: Whether to go on reading after the first look.
        clock: Wall clock, seconds since the epoch.
    """

    TITLE = "kvbench"
    CSS_PATH = "dashboard.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (COMPACT[0], "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (COMPACT[1], "-medium"), (44, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(n), f"plot('{name}')", plot.title, show=False) for n, (name, plot) in enumerate(PLOTS.items(), start=1)),
        Binding("tab", "next_plot", "plot", priority=True),
        Binding("shift+tab", "next_plot(-1)", "previous plot", show=False, priority=True),
        Binding("s", "sort", "sort"),
        Binding("r", "reverse", "reverse", show=False),
        Binding("d", "details", "details"),
        Binding("l", "log", "log"),
        Binding("z", "zoom", "zoom", show=False),
        Binding("x", "axis", "x axis", show=False),
        Binding("right_square_bracket", "figure", "next figure", show=False),
        Binding("left_square_bracket", "figure(-1)", "previous figure", show=False),
        Binding("b", "baseline", "baseline's heat map", show=False),
        Binding("right", "scroll_figure(0, 1)", "columns right", show=False),
        Binding("left", "scroll_figure(0, -1)", "columns left", show=False),
        Binding("J,shift+down", "scroll_figure(1, 0)", "page down", show=False),
        Binding("K,shift+up", "scroll_figure(-1, 0)", "page up", show=False),
        Binding("t", "next_theme", "theme"),
        Binding("p", "replay", "replay", show=False),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "leave", "leave"),
        Binding("ctrl+q", "leave", "leave", show=False, priority=True),
        Binding("ctrl+c", "cancel", "cancel", show=False, priority=True),
    ]

    def __init__(self, folder: Path, *, live: bool, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._folder, self._live, self._clock = RunFolder(folder), live, clock
        self._run_reading = Reading(self._folder.tail(), clock if live else None)
        self._reading = self._run_reading
        self._palette = Palette.of(self._variables_of(THEMES[0].name), True)
        self._drawn_at, self._drawn_cpu, self._stale = float("-inf"), time.process_time(), True
        self._cost = 0.0
        self._second = -1
        self._compact_panel, self._details_on, self._log_on, self._by_factor = "plot", True, False, False
        self._lapse: LapseFeed | None = None
        self._extent = self.size
        self._header, self._table = Header(folder.resolve().name, id="header"), MethodTable(id="table")
        self._plot, self._details, self._log_panel = PlotPanel(id="plot"), DetailsPanel(id="details"), LogPanel(id="log")
        self._bottom, self._zoomed = Container(id="bottom"), False

    def _variables_of(self, name: str) -> dict[str, str]:
        for theme in THEMES:
            if theme.name not in self.available_themes:
                self.register_theme(theme)
        return self.available_themes[name].to_color_system().generate()

    # -- life

    def compose(self) -> ComposeResult:
        yield self._header
        yield self._table
        with Vertical(id="lower"):
            with self._bottom:
                yield self._plot
                yield self._details
            yield self._log_panel
        yield Footer(show_command_palette=True)

    def on_mount(self) -> None:
        self._extent = self.size
        self.theme = THEMES[0].name
        self.theme_changed_signal.subscribe(self, lambda _: self._recolour())
        self._table.focus()
        self._lay_out()
        self._look()
        self.set_interval(POLL, self._look)
        if not self.is_headless:
            self._catch_signals()

    def _catch_signals(self) -> None:
        """Signals sent from outside do what the keys do, with the terminal restored."""
        import asyncio

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self.action_cancel)
        loop.add_signal_handler(signal.SIGTERM, self.action_leave)
        loop.add_signal_handler(signal.SIGHUP, self.action_leave)

    def _look(self) -> None:
        """Read what is new; draw if something is, and the last drawing is long enough ago."""
        if not self._header.is_attached:
            return  # the timer outlives the screen while the app closes
        if self._live or self._stale or self._lapse is not None:
            self._read()
        if self._lapse is not None and self._lapse.at_end:
            self._end_replay()
        self._check_owner()
        if (self._stale or self._reading.has_late_figures) and self._is_rested:
            self._draw()
        elif self._live and int(self._clock()) != self._second and not self._reading.is_still:
            self._second = int(self._clock())
            self._header.tick()

    @property
    def _is_rested(self) -> bool:
        """Whether the processor time since the last drawing, its own included, is a small enough share."""
        spent = time.process_time() - self._drawn_cpu
        most = max(PAUSE[1], DEAR * self._cost)
        return time.monotonic() - self._drawn_at >= min(most, max(PAUSE[0], spent / SHARE))

    def _check_owner(self) -> None:
        """A run that is silent and that no process owns was killed: say so instead of waiting."""
        reading = self._run_reading
        if reading.state.spec is None or reading.is_still or (self._live and reading.quiet < SILENCE):
            return
        reading.is_orphaned = not self._folder.is_alive()
        self._stale = self._stale or reading.is_orphaned

    def _read(self) -> None:
        self._stale = self._reading.advance() or self._stale

    def _draw(self) -> None:
        self._drawn_at, self._drawn_cpu = time.monotonic(), time.process_time()
        spec = self._reading.state.spec
        if spec is not None:
            self._plot.suggest(opening(self._reading.state))
        scene = self._scene()
        self._header.show(self._reading, self._palette)
        self._table.show(scene.rows, self._palette, scene.colours, frozenset(e.name for e in spec.evaluators) if spec else None)
        self._draw_panels(scene if scene.selected else self._scene())
        self._stale, self._cost = False, time.process_time() - self._drawn_cpu

    def _scene(self) -> Scene:
        state = self._reading.state
        colours = method_colours(state.methods, dark=self._palette.dark)
        rows, figures = self._reading.rows(), self._reading.figures() if self._plot.needs_figures else {}
        problem = self._reading.figures_problem
        return Scene(state, rows, self._palette, colours, self._table.selected, self._by_factor, figures, problem)

    def _draw_panels(self, scene: Scene | None = None) -> None:
        """Draw the panels that can be seen."""
        scene = scene or self._scene()
        for panel in (self._plot, self._details):
            if panel.display:
                panel.show(scene)
        if (log := self._log_panel).display:
            log.show(list(self._reading.log), scene)

    def _recolour(self) -> None:
        self._palette = Palette.of(self._variables_of(self.theme), self.current_theme.dark)
        self._draw()

    def on_method_table_selected(self) -> None:
        self._draw_panels()

    def export_screenshot(self, *, title: str | None = None, simplify: bool = False) -> str:
        """The screen as SVG, drawn alike by every viewer."""
        return tidy(super().export_screenshot(title=title, simplify=simplify))

    # -- arrangement

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

    # -- actions

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

    def action_leave(self) -> None:
        self.exit("finished" if self._run_reading.state.is_over else "detached")

    def action_cancel(self) -> None:
        """Ask, unless there is nothing to cancel."""
        if self._run_reading.is_still or not self._live:
            self.action_leave()
        elif isinstance(self.screen, ConfirmCancel):
            self.screen.dismiss(False)
        else:
            self.push_screen(ConfirmCancel(), lambda yes: self.exit("cancel") if yes else None)

    async def action_quit(self) -> None:
        self.action_leave()

    # -- replay

    def action_replay(self) -> None:
        """Show an ended run again in time-lapse; again ends the replay."""
        if self._lapse is not None:
            self._end_replay()
        elif self._run_reading.is_still or not self._live:
            self._lapse = LapseFeed(self._folder.read())
            self._reading = Reading(self._lapse)
            self._restart("» replay")

    def _end_replay(self) -> None:
        self._lapse, self._reading = None, self._run_reading
        self._restart("")

    def _restart(self, note: str) -> None:
        self._header.note = note
        self._stale = True

    # -- command palette

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        yield from super().get_system_commands(screen)
        yield from commands(self)
