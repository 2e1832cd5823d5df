"""The four live plots: each draws a :class:`Scene` on a canvas of any size."""

from __future__ import annotations

from collections.abc import Callable

from kvbench.formats import TIMES
from kvbench.tui.canvas import Canvas
from kvbench.tui.plots.memory import draw_memory
from kvbench.tui.plots.pareto import draw_pareto
from kvbench.tui.plots.perplexity import draw_perplexity
from kvbench.tui.plots.scene import Scene
from kvbench.tui.plots.speed import draw_speed

PLOTS: dict[str, tuple[str, Callable[[Canvas, Scene], None]]] = {
    "pareto": (f"size {TIMES} quality", draw_pareto),
    "perplexity": ("perplexity", draw_perplexity),
    "memory": ("memory", draw_memory),
    "speed": ("tokens/s", draw_speed),
}
"""Name → (title, how it is drawn), in the order of the keys 1 to 4."""

__all__ = ["PLOTS", "Scene"]
