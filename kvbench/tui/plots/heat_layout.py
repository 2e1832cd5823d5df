"""How a heat map is laid out: which grids, how large their cells are, and which part is shown.

A grid that is too high is laid on its side if that fits, else it is shown in pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.figures import Grid
from kvbench.spec import BASELINE
from kvbench.tui.live_figures import SWEEP
from kvbench.tui.plots.chosen import current, cut, figures_of, wrapped
from kvbench.tui.plots.heat import MODES, Look, decimals, mode_for, turned, unmeasured
from kvbench.tui.plots.scene import Scene, View

CELL = (1, 10)
"""Least and most cells of the terminal that one value is wide."""
CELL_BESIDE = 2
"""Least cells of one value where two grids lie side by side and one alone would have more."""
TALL = 3
LABEL, NAME = 14, 7
"""Most cells of the rows' labels, and of the name for them that widens their column."""
NOTES = 3
"""Most lines of notes."""
GAP = 3
"""Between two grids."""


@dataclass(frozen=True)
class Layout:
    """What is drawn, and where: grids side by side under one title.

    Attributes:
        evaluator: Whose. grids: One, or the method's and the baseline's, as they lie.
        label: Width of the rows' labels. look: That of cells.
        rows, columns: The part that is shown.
        head: Whether a line above the columns names them. notes: Lines under the scale.
    """

    evaluator: str
    grids: tuple[Grid, ...]
    label: int
    look: Look
    rows: range
    columns: range
    head: bool
    notes: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        return len(self.rows) == len(self.grids[0].rows) and len(self.columns) == len(self.grids[0].columns)


def arrange(scene: Scene, width: int, height: int) -> Layout | None:
    """Lay out what the view asks for; ``None`` if there is no heat map."""
    key = current(scene, Grid)
    if key is None:
        return None
    main, reference = _grids(scene, key)
    alone = _laid(key[0], (main,), scene.view, width, height)
    if reference is None or not alone.is_whole:
        return alone
    both = _laid(key[0], (main, reference), scene.view, width, height)
    enough = min(MODES.index(alone.look.mode), MODES.index("short"))
    wide = both.look.size[0] >= min(alone.look.size[0], CELL_BESIDE)
    return both if both.is_whole and wide and MODES.index(both.look.mode) >= enough else alone


def _grids(scene: Scene, key: tuple[str, str]) -> tuple[Grid, Grid | None]:
    """The grid to show, empty if its method has none yet, and the baseline's to set beside it."""
    found = {grid.method: grid for grid in figures_of(scene, key, Grid)}
    sample = next(iter(found.values()))
    wanted = BASELINE if scene.view.baseline and BASELINE in found else _owner(scene, key[0], scene.selected or sample.method)
    if wanted in found:
        main = found[wanted]
    elif not _is_expected(scene, key[0], wanted):
        main = found.get(BASELINE, sample)
    else:
        main = unmeasured(sample, wanted)
    return main, found.get(BASELINE) if main.method != BASELINE else None


def _owner(scene: Scene, evaluator: str, label: str) -> str:
    """Whose heat map shows a row: its own, or in a sweep's figures that of the method which the row is a setting of."""
    sweep = scene.state.spec.sweep if scene.state.spec and evaluator == SWEEP else None
    return next((row.method for row in sweep.rows if row.label == label), label) if sweep else label


def _is_expected(scene: Scene, evaluator: str, label: str) -> bool:
    """Whether a grid of the method may still come: the evaluator has it in its plan, and it has work left."""
    method = scene.state.methods.get(label)
    planned = any(label in unit.methods for unit in scene.state.units.values() if unit.evaluator == evaluator)
    return planned and method is not None and method.status != "done"


def _laid(evaluator: str, grids: tuple[Grid, ...], view: View, width: int, height: int) -> Layout:
    """Cells as large as fit; the scale and the columns' labels always have their lines."""
    count = len(grids)
    upright = grids[0]
    room = height - 3 - (count > 1)
    if len(upright.rows) > room >= len(upright.columns) and len(upright.rows) <= _across(turned(upright), count, width) // count:
        grids = tuple(turned(grid) for grid in grids)
    grid = grids[0]
    head = count > 1 or (bool(grid.column_name) and room > len(grid.rows))
    room = max(1, height - 3 - head)
    wide = max(CELL[0], min(CELL[1], _across(grid, count, width) // (len(grid.columns) * count)))
    columns = _part(len(grid.columns), _across(grid, count, width) // count // wide, view.column)
    notes = cut(wrapped(grid.notes, width), min(NOTES, max(0, room - len(grid.rows))))
    tall = max(1, min(TALL, (room - len(notes)) // len(grid.rows), (wide + 1) // 2))
    rows = _part(len(grid.rows), (room - len(notes)) // tall, view.row or 0)
    return Layout(evaluator, grids, _label(grid), _look(grids, wide, tall), rows, columns, head, tuple(notes))


def _look(grids: tuple[Grid, ...], wide: int, tall: int) -> Look:
    """Values that lie close together get the decimal more that they deserve if it fits."""
    fine, coarse = decimals(grids), decimals([unmeasured(grids[0], "")])
    places = fine if mode_for(grids, wide, fine) == "full" else coarse
    return Look((wide, tall), mode_for(grids, wide, places), places)


def _label(grid: Grid) -> int:
    """Width of the rows' labels with the space behind them; a long name for them gives way."""
    return min(LABEL, max(min(NAME, len(grid.row_name) + 2), *(len(text) for text in grid.rows))) + 1


def _across(grid: Grid, count: int, width: int) -> int:
    """Cells of the terminal that are left for values, all grids together."""
    return max(count, width - _label(grid) - (count - 1) * GAP)


def _part(length: int, room: int, first: int) -> range:
    shown = max(1, min(length, room))
    start = max(0, min(length - shown, first))
    return range(start, start + shown)
