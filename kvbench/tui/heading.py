"""Three lines on top: which run, what it measures, and how far it is."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from kvbench.formats import duration, shorten
from kvbench.tui.canvas import bar
from kvbench.tui.lines import Lines
from kvbench.tui.panel_facts import activity, overall, subject
from kvbench.tui.reading import Reading
from kvbench.tui.theme import Palette

QUIET_AFTER = 20.0
"""Seconds without an event after which the header says so."""


class Header(Widget):
    """Run, subject and progress."""

    def __init__(self, name_of_run: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._run = name_of_run
        self._reading: Reading | None = None
        self._palette: Palette | None = None
        self._lines = Lines(self)
        self.note = ""
        """Said in place of the state's word (``replay``)."""

    def show(self, reading: Reading, palette: Palette) -> None:
        self._reading, self._palette = reading, palette
        self.tick()

    def tick(self) -> None:
        """Draw again what changed, which may be the clock alone."""
        if self._reading is not None and self._palette is not None:
            draw = (self._first, self._second, self._third)
            lines = [Strip(line(self._reading, self._palette, self.size.width)) for line in draw]
            blank = [Strip([])] * (self.size.height - len(lines))
            self._lines.put([*lines, *blank], self._palette.ground)

    def on_resize(self) -> None:
        self.tick()

    def render_line(self, y: int) -> Strip:
        return self._lines.at(y)

    def _first(self, reading: Reading, palette: Palette, width: int) -> list[Segment]:
        word, style = _state(reading, palette, self.note)
        left = f"elapsed {duration(reading.elapsed)}"
        right = "" if reading.is_still else f"   left {duration(reading.remaining)}"
        room = width - len(left) - len(right) - len(word) - 16
        badge = Segment(" kvbench ", Style(color=palette.background, bgcolor=palette.primary, bold=True))
        name = shorten(self._run, max(8, room))
        used = 9 + 2 + len(name) + 2 + len(word)
        gap = max(1, width - used - len(left) - len(right) - 1)
        return [
            badge, Segment(f"  {name}  ", palette.strong), Segment(word, style), Segment(" " * gap),
            Segment(left, palette.text), Segment(right, palette.ink("accent")),
        ]  # fmt: skip

    def _second(self, reading: Reading, palette: Palette, width: int) -> list[Segment]:
        facts = subject(reading.state)
        if not facts:
            return [Segment(" waiting for the run to start", palette.dim)]
        found = [Segment(" " + facts[0], palette.ink("primary", bold=True))]
        used = len(facts[0]) + 1
        for fact in facts[1:]:
            if used + 3 + len(fact) >= width:
                continue
            found += [Segment(" · ", palette.line), Segment(fact, palette.text)]
            used += 3 + len(fact)
        return found

    def _third(self, reading: Reading, palette: Palette, width: int) -> list[Segment]:
        state = reading.state
        if (reading.is_still or reading.is_freshly_damaged) and not self.note:
            return _ending(reading, self._run, palette, width)
        text = shorten(activity(state), max(10, width // 2 - 4))
        stage = state.stage_done / state.stage_total if state.stage and state.stage_total > 0 else None
        own = min(24, width - len(text) - 30) if stage is not None else 0
        length = max(8, min(width - len(text) - own - 10, width // 2 if own < 8 else width // 3))
        return [
            Segment(" "), *_bar(overall(state), length, palette, "primary"), Segment(f" {overall(state):>4.0%}  ", palette.strong),
            Segment(text, palette.text), *(_bar(stage, own, palette, "accent", lead="  ") if stage is not None and own >= 8 else ()),
        ]  # fmt: skip


def _bar(share: float, width: int, palette: Palette, colour: str, lead: str = "") -> list[Segment]:
    filled, empty = bar(share, width)
    return [Segment(lead), Segment(filled, palette.ink(colour)), Segment(empty, palette.line)]


def _state(reading: Reading, palette: Palette, note: str) -> tuple[str, Style]:
    """The state in a word, with a glyph, so that colour is not needed."""
    state = reading.state
    if note:
        return note, palette.ink("accent", bold=True)
    if reading.is_orphaned or reading.broken:
        return "■ stopped", palette.ink("warning", bold=True)
    if state.status == "running" and reading.quiet > QUIET_AFTER:
        return f"… quiet for {duration(reading.quiet)}", palette.ink("warning", bold=True)
    words = {
        "planned": ("· waiting", "muted"), "running": ("▶ running", "accent"), "finished": ("✓ finished", "success"),
        "failed": ("✗ failed", "error"), "interrupted": ("■ interrupted", "warning"),
    }  # fmt: skip
    word, colour = words[state.status]
    return word, palette.ink(colour, bold=True)


def _ending(reading: Reading, name: str, palette: Palette, width: int) -> list[Segment]:
    """One loud line: how it ended, what there is, and which key leaves."""
    text, colour = _verdict(reading, name)
    leave = " q leaves "
    style = Style(color=palette.background, bgcolor=getattr(palette, colour), bold=True)
    return [Segment(shorten(text, width - len(leave)).ljust(width - len(leave)), style), Segment(leave, style)]


def _verdict(reading: Reading, name: str) -> tuple[str, str]:
    """How the run ended, and the palette's colour for it."""
    state, elapsed = reading.state, duration(reading.elapsed)
    resume = f"go on with kvbench run --resume {name}"
    if reading.broken:
        return f" ✗ The journal cannot be read: {reading.broken}", "error"
    if reading.damage and (reading.is_freshly_damaged or state.status != "finished"):
        return f" ! The journal is damaged: {reading.damage}", "warning"
    if reading.is_orphaned:
        return f" ■ The run's process is gone: {resume}", "warning"
    if state.status == "interrupted":
        return f" ■ Interrupted ({state.error}): {resume}", "warning"
    if state.status == "failed":
        return f" ✗ The run failed: {state.error}" + (f" ({state.hint})" if state.hint else ""), "error"
    failed = sum(m.status == "failed" for m in state.methods.values())
    methods = f"{len(state.methods) - failed} of {len(state.methods)} methods" if failed else f"all {len(state.methods)} methods"
    return f" ✓ Finished in {elapsed}: {methods} measured, result in {state.result}", "success"
