"""A run as far as it has been read: the folded state, and its rows computed once a change."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kvbench import events as ev
from kvbench.errors import KvbenchError
from kvbench.state import RunState, apply
from kvbench.summary import Row, rows
from kvbench.tui.feed import Feed
from kvbench.tui.log import line_of

LOG_KEPT = 400


class Reading:
    """Folds a feed's events.

    Args:
        feed: Where events come from.
        now: Wall clock, seconds since the epoch; ``None`` stands still at the last event.
    """

    def __init__(self, feed: Feed, now: Callable[[], float] | None = None) -> None:
        self.feed, self._now = feed, now
        self.state = RunState()
        self.problem: str | None = None
        """Why figures cannot be computed or the journal cannot be read, if so."""
        self.log: deque[ev.NoteWritten] = deque(maxlen=LOG_KEPT)
        self._unit_started: float | None = None
        self._rows: list[Row] = []
        self._rows_of: tuple[object, object] | None = None

    def advance(self) -> bool:
        """Take in what is new; whether anything was."""
        events = self.feed.poll()
        for event in events:
            line = line_of(event, self.state)
            if line is not None:
                self.log.append(line)
            self.state = apply(self.state, event)
            if isinstance(event, ev.UnitStarted):
                self._unit_started = event.at
        return bool(events)

    def rows(self) -> list[Row]:
        """One row a method; computed again only if a record or a row's state changed."""
        key = (self.state.records, self.state.methods)
        if self._rows_of is None or any(a is not b for a, b in zip(key, self._rows_of, strict=True)):
            self._rows, self._rows_of = self._compute(), key
        return self._rows

    def _compute(self) -> list[Row]:
        try:
            found = rows(self.state)
            self.problem = None
        except KvbenchError as error:
            self.problem = error.message
            return [
                Row(m.label, m.status, m.units_done / max(1, m.units_planned), m.error, m.audit_label)
                for m in self.state.methods.values()
            ]  # fmt: skip
        return found

    @property
    def quiet(self) -> float:
        """Seconds since the last event, while the run is running."""
        if self._now is None or self.state.is_over or self.state.last_at is None:
            return 0.0
        return max(0.0, self._now() - self.state.last_at)

    @property
    def elapsed(self) -> float:
        """Seconds of running, up to now."""
        return self.state.elapsed + self.quiet

    @property
    def remaining(self) -> float | None:
        """Seconds left: the state's estimate less what the unit under way has had."""
        left, at = self.state.remaining, self.state.last_at
        if left is None or self.state.is_over:
            return None
        if self.state.current_unit is None or self._unit_started is None or at is None:
            return left
        return max(0.0, left - (at - self._unit_started) - self.quiet)
