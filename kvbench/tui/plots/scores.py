"""Evaluators' tables: the selected method's rows are marked and kept in sight, what does not fit is reached by paging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len, set_cell_size
from rich.style import Style

from kvbench.figures import Table
from kvbench.formats import shorten
from kvbench.spec import BASELINE
from kvbench.tui.canvas import Canvas
from kvbench.tui.plots.chosen import current, cut, figures_of, none_yet, place, wrapped
from kvbench.tui.plots.scene import Scene, View, too_small

EVALUATOR = "tasks"
"""The evaluator that is named where a run has no table."""
GAP = 2
LABEL = 24
"""Cells of the first column at most, where not all columns fit."""
PINNED = 0.45
"""Share of the width that the columns which stay in sight may take."""
WORDS = 12
"""Cells of a column of words that are worth showing of it."""
NOTES = 2
"""Lines of notes that are kept where the rows do not fit; one where there are few lines."""
FEW = 10


@dataclass(frozen=True)
class Layout:
    """What is drawn of a table.

    Attributes:
        evaluator, table: Whose, and what.
        columns: (number, width) of those that are shown, left to right. pinned: How many of the first stay in sight.
        first, last: The first and the greatest first of the columns that move, counted behind the pinned ones.
        rows: Those that are shown. marked: The selected method's.
        notes: Lines under the table. hint: How to reach what is not shown, empty if all is.
    """

    evaluator: str
    table: Table
    columns: tuple[tuple[int, int], ...]
    pinned: int
    first: int
    last: int
    rows: range
    marked: frozenset[int]
    notes: tuple[str, ...]
    hint: str


def draw_scores(canvas: Canvas, scene: Scene) -> None:
    """Title, headings, rows, then the hint and the notes."""
    layout = None if too_small(canvas) else arrange(scene, canvas.width, canvas.height)
    if layout is None:
        none_yet(canvas, scene, "table of scores", EVALUATOR)
        return
    palette = scene.palette
    right = place(scene, Table)
    room = canvas.width - (len(right) + 2 if right else 0)
    canvas.text(0, 0, shorten(layout.evaluator, room), palette.ink("primary", bold=True))
    canvas.text(len(layout.evaluator) + 1, 0, "·", palette.line)
    canvas.text(len(layout.evaluator) + 3, 0, shorten(layout.table.title, room - len(layout.evaluator) - 3), palette.text)
    canvas.right(canvas.width, 0, right, palette.dim)
    _draw_row(canvas, 1, layout, layout.table.headings, lambda cell: scene.ink(cell) if cell in scene.state.methods else palette.dim)
    for y, number in enumerate(layout.rows, start=2):
        _draw_line(canvas, scene, layout, y, number)
    under = [*([layout.hint] if layout.hint else []), *layout.notes]
    bottom = 2 + len(layout.rows)
    for y, line in enumerate(under, start=bottom + (bottom + len(under) < canvas.height)):
        canvas.text(0, y, line, palette.ink("primary") if line is layout.hint else palette.dim)


def scroll_scores(scene: Scene, width: int, height: int, down: int, across: int) -> View:
    """The view a page further down, or some columns further across, within the table."""
    layout = arrange(scene, width, height)
    if layout is None:
        return scene.view
    row = layout.rows.start + down * max(1, len(layout.rows) - 1)
    row = max(0, min(len(layout.table.rows) - len(layout.rows), row))
    return replace(scene.view, row=row if down else scene.view.row, column=max(0, min(layout.last, layout.first + across)))


# -- arrangement


def arrange(scene: Scene, width: int, height: int) -> Layout | None:
    """Lay out what the view asks for; ``None`` if there is no table."""
    key = current(scene, Table)
    if key is None:
        return None
    table = figures_of(scene, key, Table)[0]
    widths = [max(map(cell_len, column)) for column in zip(table.headings, *table.rows, strict=True)]
    if sum(widths) + GAP * (len(widths) - 1) > width:
        widths[0] = min(widths[0], LABEL)
    pinned = _pinned(table, widths, width)
    used = sum(widths[:pinned]) + GAP * pinned
    last = _last(widths[pinned:], width - used)
    first = min(scene.view.column, last)
    shown = _fitting(table, widths, pinned + first, width - used)
    columns = (*enumerate(widths[:pinned]), *shown)
    across = _across(table, last, shown)
    marked = frozenset(n for n, row in enumerate(table.rows) if scene.selected in row[: table.left])
    rows, notes = _rows(table, marked, scene.view.row, height - 2, wrapped(table.notes, width), bool(across))
    down = f"rows {rows.start + 1}–{rows.stop} of {len(table.rows)} J K" if len(rows) < len(table.rows) else ""
    hint = "   ".join(filter(None, (across, down)))
    return Layout(key[0], table, columns, pinned, first, last, rows, marked, tuple(notes), shorten(hint, width))


def _pinned(table: Table, widths: Sequence[int], width: int) -> int:
    """How many of the first columns of words stay in sight; none if they would leave too little for the others."""
    count, used = 0, 0
    for column in widths[: min(table.left, len(widths) - 1)]:
        used += column + GAP
        if used > width * PINNED:
            break
        count += 1
    return count


def _fitting(table: Table, widths: Sequence[int], first: int, room: int) -> list[tuple[int, int]]:
    """Columns from ``first`` on that fit whole; the first of them always, and words where some of them are seen, cut if they must be."""
    found: list[tuple[int, int]] = []
    for number in range(first, len(widths)):
        left = room - (GAP if found else 0)
        if found and widths[number] > left and (number >= table.left or left < WORDS):
            break
        found.append((number, max(1, min(widths[number], left))))
        room = left - widths[number]
    return found


def _last(widths: Sequence[int], room: int) -> int:
    """The first column from which all the others fit."""
    first = len(widths) - 1
    while first > 0 and sum(widths[first - 1 :]) + GAP * (len(widths) - first) <= room:
        first -= 1
    return max(0, first)


def _across(table: Table, last: int, shown: Sequence[tuple[int, int]]) -> str:
    """Which columns are shown; empty if all are, whole."""
    first, final = shown[0][0] + 1, shown[-1][0] + 1
    return f"columns {first}–{final} of {len(table.headings)} ← →".replace(f"s {first}–{first} ", f" {first} ") if last else ""


def _rows(
    table: Table, marked: frozenset[int], first: int | None, room: int, notes: list[str], hinted: bool
) -> tuple[range, list[str]]:  # fmt: skip
    """The rows and the notes that fit ``room`` lines, with a line for the hint where one is needed."""
    count = len(table.rows)
    if count + len(notes) + hinted <= room:
        return range(count), notes
    kept = min(len(notes), NOTES if room > FEW else 1)
    hinted = hinted or count + kept > room
    shown = min(count, max(1, room - kept - hinted))
    start = first if first is not None else _towards(min(marked, default=0), max(marked, default=0), shown)
    start = max(0, min(count - shown, start))
    return range(start, start + shown), cut(notes, max(0, room - shown - hinted))


def _towards(first: int, last: int, shown: int) -> int:
    """The start that shows the marked rows, the first of them at least, with as much as can be of those above."""
    return max(0, min(first, last - shown + 1))


# -- drawing


def _draw_line(canvas: Canvas, scene: Scene, layout: Layout, y: int, number: int) -> None:
    palette, row = scene.palette, layout.table.rows[number]
    label = next((cell for cell in row[: layout.table.left] if cell in scene.state.methods), None)
    ground = palette.cursor if number in layout.marked else palette.pinned if label == BASELINE else None
    if ground:
        canvas.text(0, y, " " * canvas.width, Style(bgcolor=ground))

    def style(cell: str) -> Style:
        ink = scene.ink(cell) if cell == label else palette.strong if number in layout.marked else palette.text
        return ink + Style(bgcolor=ground) if ground else ink

    _draw_row(canvas, y, layout, row, style)


def _draw_row(canvas: Canvas, y: int, layout: Layout, cells: Sequence[str], style: Callable[[str], Style]) -> None:
    """Words to the left, figures to the right; what is cut ends in an ellipsis."""
    x = 0
    for number, width in layout.columns:
        text, length = cells[number], cell_len(cells[number])
        if length > width:
            text, length = set_cell_size(text, width - 1) + "…", width
        right = number >= layout.table.left
        canvas.text(x + (width - length if right else 0), y, text, style(cells[number]))
        x += width + GAP
