"""The panels under the table: the plot, the details and the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.style import Style
from rich.text import Text
from textual import events
from textual.containers import VerticalScroll
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from kvbench.formats import duration
from kvbench.record.events import NoteWritten
from kvbench.tui.canvas import Canvas
from kvbench.tui.details import details
from kvbench.tui.lines import Lines
from kvbench.tui.plots import PLOTS, Scene, View
from kvbench.tui.plots.chosen import beside

LOG_SHOWN = 200


class PlotPanel(Widget):
    """One of the plots, drawn again only when what it shows has changed."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.plot = "pareto"
        self._scene: Scene | None = None
        self._views: dict[str, View] = {}
        self._is_chosen = False
        self._lines = Lines(self)

    def on_mount(self) -> None:
        self._entitle()

    @property
    def needs_figures(self) -> bool:
        """Whether the plot draws evaluators' figures, so that they are worth computing."""
        return self.display and PLOTS[self.plot].figure is not None

    def choose(self, plot: str) -> None:
        """Change to another plot; the scene that is shown next may hold what this one lacks."""
        self.plot, self._scene, self._is_chosen = plot, None, True
        self._entitle()

    def suggest(self, plot: str) -> None:
        """Change to another plot, unless one was chosen."""
        if not self._is_chosen:
            self.choose(plot)

    def show(self, scene: Scene) -> None:
        scene = self._viewed(scene)
        before, self._scene = self._scene, scene
        if before is None or _shown(before, self.plot) != _shown(scene, self.plot) or before.palette is not scene.palette:
            self._draw()

    # -- which of the evaluators' figures, and which part of it

    def _viewed(self, scene: Scene) -> Scene:
        """The scene as the user wants to see it; another selection is looked for anew."""
        view = self._views.get(self.plot, View())
        if self._scene is not None and self._scene.selected != scene.selected:
            view = self._views[self.plot] = replace(view, row=None)
        return replace(scene, view=view)

    def _view(self, view: View) -> None:
        self._views[self.plot] = view
        if self._scene is not None:
            self.show(self._scene)

    def next_figure(self, by: int) -> None:
        """Another of the evaluators' figures; nothing where a plot shows none."""
        kind = PLOTS[self.plot].figure
        if self._scene is not None and kind is not None and (key := beside(self._scene, kind, by)):
            self._view(View(chosen=key, baseline=self._scene.view.baseline))

    def toggle_baseline(self) -> None:
        """The baseline's heat map, or the selected method's again."""
        view = self._views.get(self.plot, View())
        self._view(replace(view, baseline=not view.baseline))

    def scroll(self, down: int, across: int) -> None:
        """To another part of a figure that does not fit, by pages down and columns across."""
        scroll = PLOTS[self.plot].scroll
        if self._scene is not None and scroll is not None:
            self._view(scroll(self._scene, self.size.width, self.size.height, down, across))

    def on_mouse_scroll_down(self) -> None:
        self.scroll(1, 0)

    def on_mouse_scroll_up(self) -> None:
        self.scroll(-1, 0)

    # -- drawing

    def _entitle(self) -> None:
        """The plots' names as tabs in the border, to click; the one that is on is marked. Where room lacks, names get short, then go."""
        kinds = ([p.title for p in PLOTS.values()], [p.short for p in PLOTS.values()], [""] * len(PLOTS))
        tabs = next((t for t in map(self._tabs, kinds) if len("  ".join(t)) <= self.outer_size.width - 4), self._tabs(kinds[-1]))
        shown = zip(PLOTS, tabs, strict=True)
        self.border_title = "  ".join(
            f"[b $accent]{tab}[/]" if name == self.plot else f"[@click=app.plot('{name}')]{tab}[/]" for name, tab in shown
        )

    def _tabs(self, names: Sequence[str]) -> list[str]:
        """The tabs' texts; the one that is on has its whole name."""
        numbered = enumerate(zip(PLOTS.items(), names, strict=True), start=1)
        return [f"▸{n} {plot.title}" if key == self.plot else f"{n} {name}".rstrip() for n, ((key, plot), name) in numbered]

    def _draw(self) -> None:
        if self._scene is None or not self.size:
            return
        canvas = Canvas(self.size.width, self.size.height)
        PLOTS[self.plot].draw(canvas, self._scene)
        self._lines.put(canvas.strips(), self._scene.palette.ground)

    def on_resize(self, _: events.Resize) -> None:
        self._entitle()
        self._draw()

    def render_line(self, y: int) -> Strip:
        return self._lines.at(y)


def _shown(scene: Scene, plot: str) -> tuple[Any, ...]:
    """What a plot depends on; compared by value for rows, by identity for the rest."""
    common = (scene.selected, scene.by_factor, tuple(scene.colours.items()))
    if PLOTS[plot].figure is not None:
        statuses = tuple(method.status for method in scene.state.methods.values())
        return (*common, id(scene.figures), scene.view, scene.state.spec is None, scene.state.is_over, statuses)
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
