"""What a plot is drawn from, and what all plots do alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.style import Style

from kvbench.figures import Figure
from kvbench.metrics.row import Row
from kvbench.record.state import RunState
from kvbench.tui.canvas import Canvas
from kvbench.tui.theme import Palette

MIN_WIDTH, MIN_HEIGHT = 24, 5


@dataclass(frozen=True)
class View:
    """What the user chose of the evaluators' figures.

    Attributes:
        chosen: Which one, as (evaluator, name); ``None`` is the first.
        row, column: The first row and column that are shown of what does not fit; ``row`` ``None`` follows the selection.
        baseline: The baseline's heat map in place of the selected method's.
    """

    chosen: tuple[str, str] | None = None
    row: int | None = None
    column: int = 0
    baseline: bool = False


@dataclass(frozen=True)
class Scene:
    """A run's state with its rows, the colours, and what the user chose."""

    state: RunState
    rows: Sequence[Row]
    palette: Palette
    colours: Mapping[str, str]
    selected: str | None = None
    by_factor: bool = False
    """Size as compression factor instead of stored bytes."""
    figures: Mapping[str, Sequence[Figure]] = field(default_factory=dict)
    """evaluator → its tables and heat maps; computed for the plots that show them alone."""
    problem: str = ""
    """Why figures cannot be shown, if they cannot."""
    view: View = View()

    def ink(self, label: str) -> Style:
        return self.palette.ink(self.colours.get(label, "foreground"), bold=label == self.selected)

    def measures(self, evaluator: str) -> bool:
        return self.state.spec is None or any(e.name == evaluator for e in self.state.spec.evaluators)


def nothing_yet(canvas: Canvas, scene: Scene, evaluator: str) -> None:
    """Say why there is nothing to draw: the evaluator has not measured yet, or was not asked for."""
    if scene.measures(evaluator):
        say(canvas, scene, f"no figures of {evaluator} yet")
    else:
        say(canvas, scene, f"this run does not measure {evaluator}", f"kvbench run --evals {evaluator}")


def say(canvas: Canvas, scene: Scene, text: str, hint: str = "") -> None:
    """A sentence in the middle, and a command under it."""
    middle = canvas.height // 2
    canvas.centre(middle - (1 if hint else 0), text, scene.palette.dim)
    canvas.centre(middle + 1, hint, scene.palette.ink("primary"))


def too_small(canvas: Canvas) -> bool:
    return canvas.width < MIN_WIDTH or canvas.height < MIN_HEIGHT


def spread(wanted: Sequence[int], low: int, high: int) -> list[int]:
    """Rows for labels that want ``wanted`` (ascending): one each within [low, high], moved as little as goes.

    There must be no more labels than rows.
    """
    rows: list[int] = []
    for row in wanted:
        rows.append(max(row, rows[-1] + 1 if rows else low))
    limit = high
    for i in reversed(range(len(rows))):
        rows[i] = min(rows[i], limit)
        limit = rows[i] - 1
    return rows
