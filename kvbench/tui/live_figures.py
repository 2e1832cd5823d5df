"""Evaluators' figures while a run goes on: computed when they are looked at, again only when their records are new, and seldom.

What an evaluator gives is cleaned here once, so that drawing need not care: texts become printable single lines, and a
figure whose parts do not fit together is a problem of its evaluator, told in the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unicodedata import category

from kvbench import sweeps
from kvbench.evaluators.base import Evaluator
from kvbench.figures import Figure, Grid, Table
from kvbench.record.state import RunState
from kvbench.record.summary import figures, summarise
from kvbench.tui.panel_facts import known_evaluators

REST = 100
"""A computation of t seconds is followed by REST · t seconds without one of the same evaluator."""

SWEEP = "sweep"
"""The name under which a sweep's own figures stand, as in :func:`kvbench.record.summary.figures`."""
VARIATION = "\N{VARIATION SELECTOR-16}"


@dataclass(frozen=True)
class _Kept:
    """What was computed of one evaluator, from what, and when it may be computed again."""

    sources: tuple[Any, ...]
    figures: Sequence[Figure]
    after: float
    problem: str | None


class LiveFigures:
    """Figures of a state that grows.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._found: Mapping[str, Sequence[Figure]] = {}
        self._late: float | None = None

    @property
    def problems(self) -> dict[str, str]:
        """evaluator → why its figures cannot be shown."""
        return {name: kept.problem for name, kept in self._kept.items() if kept.problem is not None}

    @property
    def is_due(self) -> bool:
        """Whether figures that were left as they were, since their computation rested, can be computed now."""
        return self._late is not None and self._clock() >= self._late

    def of(self, state: RunState, *, final: bool) -> Mapping[str, Sequence[Figure]]:
        """evaluator → figures, the same object while nothing changed; ``final`` brings all of them up to date."""
        changed, self._late = False, None
        names = _names(state)
        for name in names:
            sources = (state.spec, state.records if name == SWEEP else state.records.get(name), state.prepared.get(name))
            kept = self._kept.get(name)
            if kept is not None and all(a is b for a, b in zip(kept.sources, sources, strict=True)):
                continue
            if kept is not None and not final and self._clock() < kept.after:
                self._late = min(self._late or kept.after, kept.after)
                continue
            self._kept[name], changed = self._compute(state, name, sources), True
        if changed:
            self._found = {name: self._kept[name].figures for name in names if self._kept[name].figures}
        return self._found

    def _compute(self, state: RunState, name: str, sources: tuple[Any, ...]) -> _Kept:
        started = self._clock()
        try:
            found, problem = [sound(figure) for figure in _figures(state, name)], None
        except Exception as error:  # an evaluator may be anyone's, and may meet records of another version: the dashboard goes on
            found, problem = [], f"figures of {name} cannot be shown: {type(error).__name__}: {error}"
        ended = self._clock()
        return _Kept(sources, found, ended + REST * (ended - started), problem)


def _names(state: RunState) -> list[str]:
    """The evaluators that have measured something, in the plan's order; what a sweep shows of all of them comes first."""
    spec = state.spec
    if spec is None:
        return []
    return [*([SWEEP] if spec.sweep and state.records else []), *(e.name for e in spec.evaluators if state.records.get(e.name))]


def _figures(state: RunState, name: str) -> Sequence[Figure]:
    """Those of one evaluator, as if the run had asked for no other."""
    spec = state.spec
    if spec is None:
        return ()
    if name == SWEEP:
        return sweeps.figures(spec, summarise(state))
    alone = replace(spec, evaluators=tuple(e for e in spec.evaluators if e.name == name), sweep=None)
    return figures(replace(state, spec=alone)).get(name, ())


def shows_figures(state: RunState, but: Sequence[str] = ()) -> bool:
    """Whether an evaluator of the run, other than those of ``but``, has figures of its own."""
    return any(type(e).figures is not Evaluator.figures for e in known_evaluators(state) if e.name not in but)


def sound(figure: Figure) -> Figure:
    """The figure with clean texts.

    Raises:
        ValueError: its parts do not fit together.
    """
    return _table(figure) if isinstance(figure, Table) else _grid(figure)


def _table(table: Table) -> Table:
    rows = [[clean(cell) for cell in row] for row in table.rows]
    odd = next((len(row) for row in rows if len(row) != len(table.headings)), None)
    if odd is not None or not table.headings:
        raise ValueError(f"table '{table.name}' has {len(table.headings)} headings and a row of {odd or 0} cells")
    return replace(table, title=clean(table.title), headings=_cleaned(table.headings), rows=rows, notes=_cleaned(table.notes))


def _grid(grid: Grid) -> Grid:
    values = [[None if value is None else float(value) for value in row] for row in grid.values]
    if not values or not values[0] or [len(row) for row in values] != [len(grid.columns)] * len(grid.rows):
        raise ValueError(f"heat map '{grid.name}' of {grid.method} has {len(grid.rows)} rows, {len(grid.columns)} columns and other values")
    return replace(
        grid, values=values, title=clean(grid.title), rows=_cleaned(grid.rows), columns=_cleaned(grid.columns),
        row_name=clean(grid.row_name), column_name=clean(grid.column_name), notes=_cleaned(grid.notes),
    )  # fmt: skip


def _cleaned(texts: Sequence[str]) -> list[str]:
    return [clean(text) for text in texts]


def clean(text: object) -> str:
    """One line without control characters: a model's output may hold what a terminal obeys."""
    line = " ".join(str(text).split())
    return line if line.isascii() and line.isprintable() else "".join(map(_visible, line))


def _visible(character: str) -> str:
    """The character, if it is seen; joiners and selectors only change the width of what stands beside them."""
    if character == VARIATION or category(character) == "Cf":
        return ""
    return character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
