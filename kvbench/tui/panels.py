"""The panels under the table: the plot, the details and the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.style import Style
from rich.text import Text
from textual import events
from textual.containers import VerticalScroll
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from kvbench.events import NoteWritten
from kvbench.formats import duration
from kvbench.tui.canvas import Canvas
from kvbench.tui.details import details
from kvbench.tui.lines import Lines
from kvbench.tui.plots import PLOTS, Scene

LOG_SHOWN = 200


class PlotPanel(Widget):
    """One of the plots, drawn again only when what it shows has changed."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.plot = "pareto"
        self._scene: Scene | None = None
        self._lines = Lines(self)

    def on_mount(self) -> None:
        self._entitle()

    def choose(self, plot: str) -> None:
        self.plot = plot
        self._entitle()
        self._draw()

    def show(self, scene: Scene) -> None:
        before, self._scene = self._scene, scene
        if before is None or _shown(before, self.plot) != _shown(scene, self.plot) or before.palette is not scene.palette:
            self._draw()

    def _entitle(self) -> None:
        """The plots' names as tabs in the border, to click; the one that is on is marked."""
        tabs = []
        for number, (name, (title, _)) in enumerate(PLOTS.items(), start=1):
            shown = name == self.plot
            tabs.append(f"[b $accent]▸{number} {title}[/]" if shown else f"[@click=app.plot('{name}')]{number} {title}[/]")
        self.border_title = "  ".join(tabs)

    def _draw(self) -> None:
        if self._scene is None or not self.size:
            return
        canvas = Canvas(self.size.width, self.size.height)
        PLOTS[self.plot][1](canvas, self._scene)
        self._lines.put(canvas.strips(), self._scene.palette.ground)

    def on_resize(self, _: events.Resize) -> None:
        self._draw()

    def render_line(self, y: int) -> Strip:
        return self._lines.at(y)


def _shown(scene: Scene, plot: str) -> tuple[Any, ...]:
    """What a plot depends on; compared by value for rows, by identity for the rest."""
    common = (scene.selected, scene.by_factor, tuple(scene.colours.items()))
    if plot == "memory":
        return (*common, id(scene.state.telemetry))
    if plot == "perplexity":
        return (*common, id(scene.state.records))
    return (*common, tuple(scene.rows), scene.state.spec is None)


class DetailsPanel(VerticalScroll):
    """The selected method's text."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._scene: Scene | None = None
        self._key: tuple[Any, ...] = ()
        self._body = Static()
        self.border_title = "details"

    def compose(self) -> Any:
        yield self._body

    def show(self, scene: Scene) -> None:
        self._scene = scene
        method = scene.state.methods.get(scene.selected or "")
        row = next((r for r in scene.rows if r.label == scene.selected), None)
        key = (row, method.revision if method else None, scene.palette, self.scrollable_content_region.width)
        if key != self._key:
            if not self._key or self._key[0] is None or row is None or self._key[0].label != row.label:
                self.scroll_home(animate=False)
            self._key = key
            self._body.update(details(scene, self.scrollable_content_region.width))

    def on_resize(self, _: events.Resize) -> None:
        if self._scene is not None:
            self.show(self._scene)


class LogPanel(VerticalScroll):
    """Notes, deaths of workers and changes of stage by the time since the run began, newest last."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._body = Static()
        self._shown: tuple[Any, ...] = ()
        self.border_title = "log"

    def compose(self) -> Any:
        yield self._body

    def show(self, entries: Sequence[NoteWritten], scene: Scene) -> None:
        key = (len(entries), entries[-1] if entries else None, scene.palette)
        if key == self._shown:
            return
        self._shown = key
        follows = self.max_scroll_y - self.scroll_offset.y <= 1
        lines = [_entry(e, scene) for e in entries[-LOG_SHOWN:]] or [Text("nothing to tell yet", scene.palette.dim)]
        self._body.update(Text("\n").join(lines))
        if follows:
            self.call_after_refresh(self.scroll_end, animate=False)


def _entry(entry: NoteWritten, scene: Scene) -> Text:
    palette = scene.palette
    inks: dict[str, Style] = {"error": palette.ink("error"), "warning": palette.ink("warning"), "stage": palette.ink("primary")}
    mark = {"error": "✗", "warning": "⚠", "stage": "▸"}.get(entry.level, "·")
    clock = duration(entry.at - (scene.state.started_at or entry.at)).rjust(7)
    style = inks.get(entry.level, palette.text)
    return Text().append(f"{clock} ", palette.dim).append(f"{mark} ", style).append(entry.text, style)
