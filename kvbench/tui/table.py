"""The methods' table: drawn line by line, with the reference pinned under the heading."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from kvbench.formats import NONE, shorten
from kvbench.metrics.apart import is_control, is_unmasked
from kvbench.metrics.row import Row
from kvbench.spec import BASELINE
from kvbench.tui.canvas import bar
from kvbench.tui.columns import GAP, Column, Plan, best_labels, columns_of, ordered, plan
from kvbench.tui.lines import Lines
from kvbench.tui.theme import Palette

GLYPHS = {"waiting": "·", "running": "▶", "done": "✓", "failed": "✗"}
BEST = "★"
WARN = "⚠"


class MethodTable(ScrollView, can_focus=True):
    """Rows of methods; one of them is selected."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("down,j", "move(1)", "down", show=False),
        Binding("pageup", "move(-8)", "page up", show=False),
        Binding("pagedown", "move(8)", "page down", show=False),
        Binding("home", "move(-9999)", "first", show=False),
        Binding("end", "move(9999)", "last", show=False),
    ]
    selected: reactive[str | None] = reactive(None)

    class Selected(Message):
        """Another method was selected."""

        def __init__(self, label: str) -> None:
            super().__init__()
            self.label = label

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._rows: list[Row] = []
        self._colours: Mapping[str, str] = {}
        self._palette: Palette | None = None
        self._evaluators: Collection[str] | None = None
        self._plan = Plan((), 14, 5)
        self._best: dict[str, set[str]] = {}
        self._lines = Lines(self)
        self.sort_key: str | None = None
        self.sort_reversed = False

    # -- what is shown

    def show(self, rows: Sequence[Row], palette: Palette, colours: Mapping[str, str], evaluators: Collection[str] | None) -> None:
        """Take new rows; draws again only if something differs. ``evaluators`` are the run's, which say what columns can be filled."""
        if list(rows) == self._rows and palette is self._palette and evaluators == self._evaluators:
            return
        self._rows, self._palette, self._colours, self._evaluators = list(rows), palette, colours, evaluators
        self._lay_out()
        if self.selected is None and self._rows:
            self.selected = next((r.label for r in self.body if not is_control(r.label)), self._rows[-1].label)

    def _lay_out(self) -> None:
        width = self.size.width
        self._plan = plan(self._rows, width, self._evaluators)
        self._best = {c.key: best_labels(self._rows, c) for c in self._plan.columns}
        self.virtual_size = Size(width, 1 + len(self._rows))
        self._draw()

    @property
    def pinned(self) -> Row | None:
        return next((r for r in self._rows if r.label == BASELINE), None)

    @property
    def body(self) -> list[Row]:
        """The rows below the pinned one, sorted."""
        return ordered([r for r in self._rows if r is not self.pinned], self.sort_column, reverse=self.sort_reversed)

    @property
    def lines(self) -> list[Row]:
        return ([self.pinned] if self.pinned else []) + self.body

    @property
    def sortable(self) -> list[Column]:
        """The columns that rows can be sorted by, those included that the terminal is too narrow for."""
        return [c for c in columns_of(self._rows, self._evaluators) if not c.beside and c.key != "audit"]

    @property
    def sort_column(self) -> Column | None:
        return next((c for c in self.sortable if c.key == self.sort_key), None)

    # -- what the user does

    def cycle_sort(self) -> None:
        """Sort by the next column that is shown; after the last one by the plan's order."""
        keys = [None, *(c.key for c in self._plan.columns if not c.beside and c.key != "audit")]
        at = keys.index(self.sort_key) if self.sort_key in keys else 0
        self.sort_by(keys[(at + 1) % len(keys)])

    def sort_by(self, key: str | None, *, reverse: bool = False) -> None:
        self.sort_key, self.sort_reversed = key, reverse
        self._show_selected()
        self._draw()

    def reverse_sort(self) -> None:
        self.sort_by(self.sort_key, reverse=not self.sort_reversed)

    def action_move(self, by: int) -> None:
        labels = [r.label for r in self.lines]
        if labels:
            at = labels.index(self.selected) if self.selected in labels else 0
            self.selected = labels[max(0, min(len(labels) - 1, at + by))]

    def watch_selected(self, label: str | None) -> None:
        if label is not None:
            self._show_selected()
            self._draw()
            self.post_message(self.Selected(label))

    def _show_selected(self) -> None:
        """Scroll so that the selected line is not under the pinned ones."""
        labels = [r.label for r in self.body]
        if self.selected not in labels:
            return
        room = self.size.height - self._fixed
        at, top = labels.index(self.selected), self.scroll_offset.y
        if at < top or at >= top + room:
            self.scroll_to(y=at if at < top else at - room + 1, animate=False)

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None:
            return
        if offset.y == 0:
            self._sort_at(offset.x)
        elif (row := self._row_at(offset.y)) is not None:
            self.selected = row.label

    def _sort_at(self, x: int) -> None:
        right = 3 + self._plan.method
        for column in self._plan.columns:
            right += column.width + (1 if column.beside else GAP)
            if x < right:
                if not column.beside and x >= 3 + self._plan.method:
                    self.sort_by(column.key, reverse=column.key == self.sort_key and not self.sort_reversed)
                return

    def on_resize(self) -> None:
        self._lay_out()
        self._show_selected()

    # -- drawing

    @property
    def _fixed(self) -> int:
        return 2 if self.pinned else 1

    def _row_at(self, y: int) -> Row | None:
        if y == 1 and self.pinned:
            return self.pinned
        at, body = y - self._fixed + self.scroll_offset.y, self.body
        return body[at] if 0 <= at < len(body) else None

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._draw()

    def render_line(self, y: int) -> Strip:
        return self._lines.at(y)

    def _draw(self) -> None:
        palette, width = self._palette, self.size.width
        if palette is None or width < 1:
            return
        pinned, body = self.pinned, self.body
        top = self.scroll_offset.y
        shown = ([pinned] if pinned else []) + body[top : top + max(0, self.size.height - self._fixed)]
        lines = [Strip(self._line(row, palette)).adjust_cell_length(width).apply_style(self._ground(row, palette)) for row in shown]
        blank = [Strip([])] * (self.size.height - 1 - len(lines))
        self._lines.put([Strip(self._heading(palette)), *lines, *blank], palette.ground)

    def _ground(self, row: Row, palette: Palette) -> Style:
        if row.label == self.selected:
            return Style(bgcolor=palette.cursor)
        return Style(bgcolor=palette.pinned) if row is self.pinned else Style.null()

    def _heading(self, palette: Palette) -> list[Segment]:
        found = [Segment("   "), Segment("method".ljust(self._plan.method), palette.dim)]
        for column in self._plan.columns:
            sorted_by = column.key == self.sort_key
            downwards = (column.best == "highest") != self.sort_reversed
            title = column.title + (("▼" if downwards else "▲") if sorted_by else "")
            style = palette.ink("accent", bold=True) if sorted_by else palette.dim
            gap = 1 if column.beside else GAP
            text = f" {title.ljust(column.width)}" if column.beside or column.key == "audit" else title.rjust(column.width + gap)
            found.append(Segment(text if column.key != "audit" else " " + text, style))
        return [*found, Segment("  progress" if self._plan.progress >= 8 else "", palette.dim)]

    def _line(self, row: Row, palette: Palette) -> list[Segment]:
        head = [self._glyph(row, palette), *self._label_of(row, palette)]
        if row.status == "failed":
            width = sum(c.width + (1 if c.beside else GAP) for c in self._plan.columns)
            text = shorten((row.error or "failed").splitlines()[0], width - GAP)
            return [*head, Segment((" " * GAP + text).ljust(width), palette.ink("error")), *self._progress(row, palette)]
        figures = [segment for c in self._plan.columns for segment in self._figure(row, c, palette)]
        return [*head, *figures, *self._progress(row, palette)]

    def _glyph(self, row: Row, palette: Palette) -> Segment:
        ink = {"waiting": palette.dim, "running": palette.ink("accent", bold=True), "done": palette.ink("success")}
        return Segment(f" {GLYPHS[row.status]} ", ink.get(row.status, palette.ink("error", bold=True)))

    def _label_of(self, row: Row, palette: Palette) -> list[Segment]:
        flag = f" {WARN} {row.audit}" if is_unmasked(row) else ""
        name = shorten(row.label, self._plan.method - len(flag) if flag and self._plan.method > 18 else self._plan.method)
        style = palette.ink(self._colours.get(row.label, "foreground"), bold=row.label == self.selected or row is self.pinned)
        room = self._plan.method - len(name)
        return [Segment(name, style), Segment(flag[:room].ljust(room), palette.ink("warning", bold=True))]

    def _figure(self, row: Row, column: Column, palette: Palette) -> list[Segment]:
        text = column.text(row)
        if column.beside:
            return [Segment(" " + text.ljust(column.width), palette.dim)]
        if column.key == "audit":
            good = not is_unmasked(row)
            style = palette.dim if row.audit is None or row is self.pinned else palette.ink("success" if good else "warning", bold=not good)
            return [Segment(f"  {text}".ljust(column.width + GAP), style)]
        if row.label in self._best.get(column.key, ()):
            padding = column.width + GAP - len(text) - 1
            return [Segment(" " * padding + BEST + text, palette.ink("accent", bold=True))]
        style = palette.dim if text == NONE or is_unmasked(row) else palette.text
        return [Segment(text.rjust(column.width + GAP), style)]

    def _progress(self, row: Row, palette: Palette) -> list[Segment]:
        width = self._plan.progress - (5 if self._plan.progress >= 12 else 0)
        failed = row.status == "failed"
        filled, empty = bar(0.0 if failed else row.progress, width)
        ink = palette.ink({"running": "accent", "done": "settled"}.get(row.status, "primary"))
        figure = (f"    {NONE}" if failed else f"{row.progress:>5.0%}") if self._plan.progress >= 12 else ""
        return [Segment(" " * GAP), Segment(filled, ink), Segment(empty, palette.line), Segment(figure, palette.dim)]
