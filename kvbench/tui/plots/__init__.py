"""The plots under the table: each draws a :class:`Scene` on a canvas of any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvbench.figures import Figure, Grid, Table
from kvbench.formats import TIMES
from kvbench.record.state import RunState
from kvbench.tui.canvas import Canvas
from kvbench.tui.live_figures import shows_figures
from kvbench.tui.plots.grid import draw_grid, scroll_grid
from kvbench.tui.plots.memory import draw_memory
from kvbench.tui.plots.pareto import draw_pareto
from kvbench.tui.plots.perplexity import draw_perplexity
from kvbench.tui.plots.scene import Scene, View
from kvbench.tui.plots.scores import draw_scores, scroll_scores
from kvbench.tui.plots.speed import draw_speed


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        title, short: Its name on a tab, where there is room and where there is little.
        draw: Draws a scene.
        figure: The kind of evaluators' figures that it shows, if it shows those.
        scroll: The view after a move by (pages down, columns or pages across) on a canvas of (width, height) cells.
    """

    title: str
    short: str
    draw: Callable[[Canvas, Scene], None]
    figure: type[Figure] | None = None
    scroll: Callable[[Scene, int, int, int, int], View] | None = None


PLOTS: dict[str, Plot] = {
    "pareto": Plot(f"size {TIMES} quality", "size", draw_pareto),
    "perplexity": Plot("perplexity", "PPL", draw_perplexity),
    "memory": Plot("memory", "memory", draw_memory),
    "speed": Plot("tokens/s", "tok/s", draw_speed),
    "grid": Plot("heat map", "heat map", draw_grid, Grid, scroll_grid),
    "scores": Plot("scores", "scores", draw_scores, Table, scroll_scores),
}
"""Name → plot, in the order of the keys from 1."""


def opening(state: RunState) -> str:
    """The plot that a run is best met with: that of the first thing it measures, in this order."""
    measured = {e.name for e in state.spec.evaluators} if state.spec else set()
    for evaluator, plot in (("perplexity", "pareto"), ("needle", "grid")):
        if evaluator in measured or not measured:
            return plot
    return "scores" if shows_figures(state, but=("speed",)) else "speed" if "speed" in measured else "memory"


__all__ = ["PLOTS", "Plot", "Scene", "View", "opening"]
