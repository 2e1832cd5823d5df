"""Which of the evaluators' figures is shown: one of several, by its evaluator and its name."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TypeVar

from kvbench.figures import Figure
from kvbench.formats import shorten
from kvbench.tui.canvas import Canvas
from kvbench.tui.live_figures import shows_figures
from kvbench.tui.plots.scene import Scene, nothing_yet, say

Key = tuple[str, str]
"""(evaluator, name of the figure); heat maps of several methods share one."""
F = TypeVar("F", bound=Figure)


def keys(scene: Scene, kind: type[Figure]) -> list[Key]:
    """All figures of a kind, in the order of the evaluators."""
    return list(dict.fromkeys((name, f.name) for name, found in scene.figures.items() for f in found if isinstance(f, kind)))


def current(scene: Scene, kind: type[Figure]) -> Key | None:
    """The one that is shown: what was chosen, else the first."""
    found = keys(scene, kind)
    return scene.view.chosen if scene.view.chosen in found else next(iter(found), None)


def beside(scene: Scene, kind: type[Figure], by: int) -> Key | None:
    """The one ``by`` places after the current, around the end."""
    found, now = keys(scene, kind), current(scene, kind)
    return found[(found.index(now) + by) % len(found)] if now else None


def figures_of(scene: Scene, key: Key, kind: type[F]) -> Sequence[F]:
    return [f for f in scene.figures.get(key[0], ()) if isinstance(f, kind) and f.name == key[1]]


def place(scene: Scene, kind: type[Figure]) -> str:
    """``2 of 5 [ ]``, with the keys that choose another; empty if there is one alone."""
    found, now = keys(scene, kind), current(scene, kind)
    return f"{found.index(now) + 1} of {len(found)}  [ ]" if now and len(found) > 1 else ""


def wrapped(notes: Sequence[str], width: int) -> list[str]:
    """Notes as lines."""
    return [line for note in notes for line in textwrap.wrap(note, max(20, width))]


def cut(lines: list[str], count: int) -> list[str]:
    """The first lines; an ellipsis tells of more."""
    return lines if len(lines) <= count else [*lines[: count - 1], f"{lines[count - 1].rstrip('. ')[:-2]} …"] if count > 0 else []


def none_yet(canvas: Canvas, scene: Scene, what: str, evaluator: str) -> None:
    """Say that there is no such figure, and which evaluator gives one."""
    if scene.problem:
        say(canvas, scene, shorten(scene.problem, canvas.width), "the log has it too: l")
    elif scene.state.spec is None or scene.measures(evaluator):
        nothing_yet(canvas, scene, evaluator)
    elif not scene.state.is_over and shows_figures(scene.state):
        say(canvas, scene, f"no {what} so far", f"kvbench run --evals {evaluator} gives one")
    else:
        say(canvas, scene, f"no evaluator of this run gives a {what}", f"kvbench run --evals {evaluator}")
