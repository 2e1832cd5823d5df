"""A run's rows while it goes on, at a small share of the cost of computing them all at each record.

Between two full computations only the methods with new records are computed, each beside the baseline; where that is dear,
one at a time and seldom. A full one follows when the last is long enough ago for its cost, and always at the run's end: so an
evaluator whose figures of one method hang on another's is late while the run goes on, never wrong after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from kvbench.errors import KvbenchError
from kvbench.metrics.row import Row
from kvbench.record.state import MethodState, RunState
from kvbench.record.summary import rows
from kvbench.spec import BASELINE

REST = 100
"""A full computation of t seconds is followed by REST · t seconds without one."""
REST_OF_ROWS, AT_ONCE = 20, 0.02
"""So are rows that took longer than AT_ONCE seconds, by REST_OF_ROWS · t without any; a look goes no further than that."""
_BROKEN = (KvbenchError, ArithmeticError, LookupError, TypeError, ValueError)
"""What an evaluator may raise over records that another version of it wrote, or where its plug-in is missing."""


class LiveRows:
    """Rows of a state that grows.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._state = RunState()
        self._rows: list[Row] = []
        self._full_after = self._row_after = float("-inf")
        self._late: dict[str, None] = {}
        self.problem: str | None = None
        """Why figures cannot be computed, if they cannot."""

    def of(self, state: RunState, *, final: bool) -> list[Row]:
        """One row a method; ``final`` asks for a full computation."""
        before, self._state = self._state, state
        if state.records is before.records and state.methods is before.methods and not final and not self.is_due:
            return self._rows
        started = self._clock()
        if final or started >= self._full_after or list(state.methods) != [r.label for r in self._rows]:
            self._rows, self._late = self._compute(state), {}
            self._full_after = self._clock() + REST * (self._clock() - started)
            return self._rows
        self._late |= dict.fromkeys(label for label in state.methods if _has_news(before, state, label))
        fresh = self._again(state, started) if started >= self._row_after else {}
        self._rows = [fresh.get(row.label) or self._row(before, state, row) for row in self._rows]
        return self._rows

    @property
    def is_due(self) -> bool:
        """Whether rows that were left as they were, since their computation rested, can be computed now."""
        return bool(self._late) and self._clock() >= self._row_after

    def _again(self, state: RunState, started: float) -> dict[str, Row]:
        """Rows with new records, those that have waited longest first; as many as a look may take."""
        fresh: dict[str, Row] = {}
        for label in [*self._late]:
            fresh |= {row.label: row for row in self._compute(_only(state, label)) if row.label == label}
            del self._late[label]
            took = self._clock() - started
            if took > AT_ONCE:
                self._row_after = self._clock() + REST_OF_ROWS * took
                break
        return fresh

    def _row(self, before: RunState, after: RunState, row: Row) -> Row:
        """The row with its state brought up to date."""
        method = after.methods[row.label]
        if method is before.methods.get(row.label):
            return row
        progress = method.units_done / max(1, method.units_planned)
        return replace(row, status=method.status, progress=progress, error=method.error, audit=method.audit_label)

    def _compute(self, state: RunState) -> list[Row]:
        try:
            found = rows(state)
            self.problem = None
        except _BROKEN as error:
            self.problem = f"figures cannot be computed: {error}"
            return [_bare(method) for method in state.methods.values()]
        return found


def _has_news(before: RunState, after: RunState, label: str) -> bool:
    """Whether the method has records that ``before`` had not."""
    return any(of.get(label) is not before.records.get(name, {}).get(label) for name, of in after.records.items())


def _only(state: RunState, label: str) -> RunState:
    """The state as if it held one method and the baseline."""
    names = {label, BASELINE}
    records = {name: {k: v for k, v in of.items() if k in names} for name, of in state.records.items()}
    return replace(state, methods={k: v for k, v in state.methods.items() if k in names}, records=records)


def _bare(method: MethodState) -> Row:
    return Row(method.label, method.status, method.units_done / max(1, method.units_planned), method.error, method.audit_label)
