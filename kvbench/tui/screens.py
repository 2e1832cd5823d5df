"""Screens above the dashboard: the help, and the question before a run is cancelled."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Label, Static

from kvbench.tui.columns import columns
from kvbench.tui.table import BEST, GLYPHS, WARN
from kvbench.tui.theme import Palette

KEYS = (
    ("↑ ↓", "select a method"),
    ("1 to 6, tab", "choose the plot, the heat map, the scores"),
    ("x", "size as stored bytes or as compression factor"),
    ("[ ]", "previous, next heat map or table of scores"),
    ("b", "the baseline's heat map, and back"),
    ("← →, J K", "columns and rows that do not fit"),
    ("s, r", "sort by the next column, reverse"),
    ("d, l", "show or hide details, log"),
    ("z", "enlarge the plot, and back"),
    ("t, p", "next theme, replay an ended run"),
    ("ctrl+p", "command palette"),
    ("q", "leave; a run under way goes on"),
    ("ctrl+c", "cancel the run, after asking"),
)
SIGNS = (
    (f"{GLYPHS['waiting']} {GLYPHS['running']} {GLYPHS['done']} {GLYPHS['failed']}", "waiting, running, done, failed"),
    (BEST, "shown best of rows that beat random and save half as much"),
    (f"{WARN} masked", "the audit found no real saving: shown, not ranked"),
    ("not yet", "nothing compressed yet: the prompt is shorter than what the method leaves as it is"),
    ("● ○ ◆ ◇", "on the frontier, not on it, selected, the baseline"),
)


class Help(ModalScreen[None]):
    """Keys, columns and signs."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,q,enter", "dismiss", "close")]

    def __init__(self, palette: Palette) -> None:
        super().__init__()
        self._palette = palette

    def compose(self) -> ComposeResult:
        meanings = [*((c.title, c.meaning) for c in columns([]) if not c.beside), ("NAME %", "main score of an evaluator or a task")]
        text = Text("\n\n").join([self._table("Keys", KEYS), self._table("Columns", meanings), self._table("Signs", SIGNS)])
        with VerticalScroll(id="help") as box:
            box.border_title = "help"
            box.border_subtitle = "esc closes"
            yield Static(text)

    def _table(self, title: str, pairs: object) -> Text:
        text = Text().append(title, self._palette.ink("primary", bold=True))
        for left, right in pairs:  # type: ignore[attr-defined]
            text.append(f"\n  {left:<14}", self._palette.ink("accent", bold=True)).append(str(right), self._palette.text)
        return text


class ConfirmCancel(ModalScreen[bool]):
    """Asks whether to end the run."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "cancel the run"),
        Binding("n,escape,q,ctrl+c", "answer(False)", "go on"),
        Binding("left,right", "app.focus_next", show=False),
    ]

    def compose(self) -> ComposeResult:
        with Vertical(id="confirm"):
            yield Label("Cancel the run?", id="question")
            yield Label("What is measured is kept, and the run can be resumed. To leave it running, press n, then q.")
            with Horizontal(id="answers"):
                yield Button("No, go on (n)", id="no", variant="primary")
                yield Button("Yes, cancel (y)", id="yes", variant="error")

    def on_mount(self) -> None:
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)
