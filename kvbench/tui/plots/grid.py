"""Evaluators' heat maps: the selected method's, with the baseline's beside it where there is room."""

from __future__ import annotations

from dataclasses import replace

from rich.style import Style

from kvbench.figures import Grid
from kvbench.formats import shorten
from kvbench.spec import BASELINE
from kvbench.tui.canvas import Canvas
from kvbench.tui.plots.chosen import none_yet, place
from kvbench.tui.plots.heat import UNKNOWN, draw_cell, draw_scale, full, mean
from kvbench.tui.plots.heat_layout import GAP, Layout, arrange
from kvbench.tui.plots.scene import Scene, View, too_small

EVALUATOR = "needle"
"""The evaluator that is named where a run has no heat map."""


def draw_grid(canvas: Canvas, scene: Scene) -> None:
    """Title, grid, scale and, where there is room, notes."""
    layout = None if too_small(canvas) else arrange(scene, canvas.width, canvas.height)
    if layout is None:
        none_yet(canvas, scene, "heat map", EVALUATOR)
        return
    _draw_title(canvas, scene, layout)
    _draw_labels(canvas, scene, layout)
    left = layout.label
    for grid in layout.grids:
        _draw_one(canvas, scene, layout, grid, left)
        left += layout.look.size[0] * len(layout.columns) + GAP
    bottom = 1 + layout.head + 1 + len(layout.rows) * layout.look.size[1]
    bottom += bottom + 1 + len(layout.notes) < canvas.height
    _draw_legend(canvas, scene, layout, bottom)
    for y, line in enumerate(layout.notes, start=bottom + 1):
        canvas.text(0, y, line, scene.palette.dim)


def scroll_grid(scene: Scene, width: int, height: int, down: int, across: int) -> View:
    """The view a page further, within the grid."""
    layout = arrange(scene, width, height)
    if layout is None:
        return scene.view
    grid, rows, columns = layout.grids[0], layout.rows, layout.columns
    row = rows.start + down * max(1, len(rows) - 1)
    column = columns.start + across * max(1, len(columns) - 1)
    return replace(
        scene.view, row=max(0, min(len(grid.rows) - len(rows), row)), column=max(0, min(len(grid.columns) - len(columns), column))
    )  # fmt: skip


def _draw_title(canvas: Canvas, scene: Scene, layout: Layout) -> None:
    """Whose it is, of which method, what it shows, and which of how many."""
    palette, grid = scene.palette, layout.grids[0]
    right = "   ".join(filter(None, (_toggle(scene, layout), place(scene, Grid))))
    room = canvas.width - (len(right) + 2 if right else 0)
    parts = [(layout.evaluator, palette.ink("primary", bold=True)), (grid.method, scene.ink(grid.method)), (grid.title, palette.text)]
    x = 0
    for text, style in parts:
        if x:
            canvas.text(x, 0, "·" if x + 2 < room else "", palette.line)
            x += 2
        canvas.text(x, 0, shorten(text, room - x), style)
        x += len(text) + 1
    canvas.right(canvas.width, 0, right, palette.dim)


def _toggle(scene: Scene, layout: Layout) -> str:
    """The key to the baseline's, where it is not beside."""
    if scene.view.baseline and scene.selected not in (None, BASELINE):
        return f"b {scene.selected}"
    grid = layout.grids[0]
    has = any(g.method == BASELINE for g in scene.figures.get(layout.evaluator, ()) if isinstance(g, Grid) and g.name == grid.name)
    return "b baseline" if has and len(layout.grids) == 1 and grid.method != BASELINE else ""


def _draw_labels(canvas: Canvas, scene: Scene, layout: Layout) -> None:
    """The rows' name and labels, once for all grids."""
    grid, style, y = layout.grids[0], scene.palette.dim, 1 + layout.head
    room, tall = layout.label - 1, layout.look.size[1]
    if grid.row_name:
        canvas.right(room, y, f"{shorten(grid.row_name, room - 2)} ↓", style)
    for line, row in enumerate(layout.rows):
        canvas.right(room, y + 1 + line * tall + (tall - 1) // 2, shorten(grid.rows[row], room), style)


def _draw_one(canvas: Canvas, scene: Scene, layout: Layout, grid: Grid, left: int) -> None:
    palette, (wide, tall), y = scene.palette, layout.look.size, 1 + layout.head
    _draw_columns(canvas, layout, grid, left, y, palette.dim)
    name = f"{grid.column_name} →" if grid.column_name else ""
    if layout.head:
        method = f"{grid.method}  " if len(layout.grids) > 1 else ""
        canvas.text(left, 1, method, scene.ink(grid.method))
        canvas.text(left + len(method), 1, name, palette.dim)
    elif canvas.is_free(left + wide * len(layout.columns) + 1, y, len(name)):
        canvas.text(left + wide * len(layout.columns) + 1, y, name, palette.dim)
    for line, row in enumerate(layout.rows):
        for number, column in enumerate(layout.columns):
            at = (left + number * wide, y + 1 + line * tall)
            draw_cell(canvas, at, grid, grid.values[row][column], layout.look, palette)


def _draw_columns(canvas: Canvas, layout: Layout, grid: Grid, left: int, y: int, style: Style) -> None:
    """The columns' labels, as many as stand apart."""
    wide, free = layout.look.size[0], left
    for number, column in enumerate(layout.columns):
        text = shorten(grid.columns[column], max(wide - 1, 6))
        start = max(free, left + number * wide + (wide - len(text)) // 2)
        if start <= left + number * wide + max(0, wide - len(text)) and start + len(text) <= canvas.width:
            canvas.text(start, y, text, style)
            free = start + len(text) + 1


def _draw_legend(canvas: Canvas, scene: Scene, layout: Layout, y: int) -> None:
    """The scale, what is good, means, what is not measured, and which part is shown; the last ones give way."""
    palette, grid = scene.palette, layout.grids[0]
    low, high = (full(end, layout.look.decimals) for end in (grid.low, grid.high))
    length = 16 if canvas.width >= 60 else 8
    canvas.text(0, y, low, palette.dim)
    draw_scale(canvas, len(low) + 1, y, length, grid, layout.look.mode, palette)
    x = len(low) + length + 2
    for text in [high, *_said(layout)]:
        if x + len(text) <= canvas.width:
            canvas.text(x, y, text, palette.dim)
            x += len(text) + 3


def _said(layout: Layout) -> list[str]:
    """The words beside the scale, most needed first."""
    grid = layout.grids[0]
    cells = len(grid.rows) * len(grid.columns)
    known = sum(v is not None for row in grid.values for v in row)
    return [text for text in (
        _shown("rows", layout.rows, len(grid.rows), "J K"), _shown("columns", layout.columns, len(grid.columns), "← →"),
        f"{UNKNOWN} {cells - known} of {cells} not measured" if known < cells else "",
        f"{grid.good} is good" if grid.good in ("high", "low") else "", _means(layout),
    ) if text]  # fmt: skip


def _means(layout: Layout) -> str:
    """The mean of what is measured, and the baseline's beside it."""
    found = [(grid, value) for grid in layout.grids if (value := mean(grid)) is not None]
    texts = [("" if grid is layout.grids[0] else f"{grid.method} ") + full(value, layout.look.decimals) for grid, value in found]
    return "mean " + ", ".join(texts) if texts else ""


def _shown(what: str, part: range, length: int, keys: str) -> str:
    return f"{what} {part.start + 1}–{part.stop} of {length} {keys}" if len(part) < length else ""
