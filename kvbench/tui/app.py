"""The dashboard: a reader of a run's journal that draws at most four times a second."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from kvbench.engine.journal import RunFolder
from kvbench.figures.colours import method_colours
from kvbench.tui.arranged import Arranged
from kvbench.tui.commands import commands
from kvbench.tui.feed import LapseFeed
from kvbench.tui.pace import Pace
from kvbench.tui.plots import PLOTS, Scene, opening
from kvbench.tui.reading import Reading
from kvbench.tui.screens import ConfirmCancel
from kvbench.tui.svg import tidy
from kvbench.tui.theme import THEMES, Palette

POLL = 0.4
"""Seconds between looks at the journal."""
SILENCE = 5.0
"""Seconds without an event after which the run's owner is looked for."""


class Dashboard(Arranged):
    """Follows one run: reads its journal, draws what it came to, and replays it.

    Args:
        folder: The run's folder.
        live: Whether to go on reading after the first look.
        clock: Wall clock, seconds since the epoch.
    """

    TITLE = "kvbench"
    CSS_PATH = "dashboard.tcss"
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
        super().__init__(folder.resolve().name)
        self._folder, self._live, self._clock = RunFolder(folder), live, clock
        self._run_reading = Reading(self._folder.tail(), clock if live else None)
        self._reading = self._run_reading
        self._pace, self._stale, self._second = Pace(), True, -1
        self._lapse: LapseFeed | None = None

    # -- life

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
        if (self._stale or self._reading.has_late_figures) and self._pace.is_rested:
            self._draw()
        elif self._live and int(self._clock()) != self._second and not self._reading.is_still:
            self._second = int(self._clock())
            self._header.tick()

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
        with self._pace.drawing():
            spec = self._reading.state.spec
            if spec is not None:
                self._plot.suggest(opening(self._reading.state))
            scene = self._scene()
            self._header.show(self._reading, self._palette)
            self._table.show(scene.rows, self._palette, scene.colours, frozenset(e.name for e in spec.evaluators) if spec else None)
            self._draw_panels(scene if scene.selected else self._scene())
        self._stale = False

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

    # -- leaving

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
        yield from commands(self, self._table)
