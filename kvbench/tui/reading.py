"""A run as far as it has been read: the folded state, and its rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

from kvbench.errors import KvbenchError
from kvbench.figures import Figure
from kvbench.metrics.row import Row
from kvbench.printable import printable, printable_data
from kvbench.record import events as ev
from kvbench.record.state import RunState, apply
from kvbench.tui.feed import Feed
from kvbench.tui.live_figures import LiveFigures
from kvbench.tui.log import line_of
from kvbench.tui.rows import LiveRows

LOG_KEPT = 400


def shown(event: ev.Event) -> ev.Event:
    """The event with every name and message in it fit for a terminal; the data of records go through figures, which see to it."""
    if isinstance(event, ev.TelemetrySampled):
        return event
    parts = {f.name: getattr(event, f.name) for f in fields(event) if f.name != "data"}
    clean = {name: printable_data(value) for name, value in parts.items()}
    return event if clean == parts else replace(event, **clean)


class Reading:
    """Folds a feed's events.

    Args:
        feed: Where events come from.
        now: Wall clock, seconds since the epoch; ``None`` stands still at the last event.
    """

    def __init__(self, feed: Feed, now: Callable[[], float] | None = None) -> None:
        self.feed, self._now = feed, now
        self.state = RunState()
        self.log: deque[ev.NoteWritten] = deque(maxlen=LOG_KEPT)
        self.is_orphaned = False
        """Whether the run stands still because no process owns it any more."""
        self.is_freshly_damaged = False
        """Whether lines of the journal were lost since a unit was last finished."""
        self.broken: str | None = None
        """Why the journal cannot be read on, if so."""
        self._live_rows = LiveRows()
        self._live_figures = LiveFigures()
        self._told: dict[str, str] = {}
        self._is_final = False
        self._problem: str | None = None

    def advance(self) -> bool:
        """Take in what is new; whether anything was."""
        if self.broken:
            return False
        before = self.damage
        try:
            events = [shown(event) for event in self.feed.poll()]
        except KvbenchError as error:
            self.broken = error.message
            return True
        for event in events:
            line = line_of(event, self.state)
            if line is not None:
                self.log.append(line)
            self.state = apply(self.state, event)
            self.is_freshly_damaged = self.is_freshly_damaged and not isinstance(event, ev.UnitFinished)
        self.is_freshly_damaged = self.is_freshly_damaged or self.damage != before
        self.is_orphaned = self.is_orphaned and not events
        return bool(events)

    @property
    def damage(self) -> str | None:
        """What of the journal was left out, and what that costs."""
        damage: str | None = getattr(self.feed, "damage", None)
        return None if damage is None else printable(damage)

    def rows(self) -> list[Row]:
        """One row a method, kept while nothing of them changed."""
        final = self.is_still and not self._is_final
        self._is_final = self.is_still
        found = self._live_rows.of(self.state, final=final)
        if self._live_rows.problem != self._problem:
            self._problem = self._live_rows.problem
            self._tell(self._problem or "figures can be computed again")
        return found

    def figures(self) -> Mapping[str, Sequence[Figure]]:
        """evaluator → tables and heat maps, for who looks at them; what an evaluator cannot give is a line in the log."""
        found = self._live_figures.of(self.state, final=self.is_still)
        problems = self._live_figures.problems
        for name in {**self._told, **problems}:
            if problems.get(name) != self._told.get(name):
                self._tell(problems.get(name) or f"figures of {name} can be shown again")
        self._told = problems
        return found

    @property
    def figures_problem(self) -> str:
        """Why some evaluator's figures cannot be shown, if so."""
        return next(iter(self._told.values()), "")

    @property
    def has_late_figures(self) -> bool:
        """Whether there are figures to compute that were put off."""
        return self._live_figures.is_due or self._live_rows.is_due

    def _tell(self, problem: str) -> None:
        self.log.append(ev.NoteWritten(self.state.last_at or 0.0, problem, "error"))

    @property
    def is_still(self) -> bool:
        """Whether nothing more is to be expected unless the run is resumed."""
        return self.state.is_over or self.is_orphaned or self.broken is not None

    @property
    def quiet(self) -> float:
        """Seconds since the last event, while the run is running."""
        if self._now is None or self.is_orphaned or self.state.is_over or self.state.last_at is None:
            return 0.0
        return max(0.0, self._now() - self.state.last_at)

    @property
    def elapsed(self) -> float:
        """Seconds of running, up to now."""
        return self.state.elapsed + self.quiet

    @property
    def remaining(self) -> float | None:
        """Seconds left: the state's estimate less what the unit under way has had, at most that unit's own share."""
        state, left = self.state, self.state.remaining
        if left is None or self.is_still:
            return None
        if state.current is None or state.last_at is None:
            return left
        after = max(0.0, left - state.expected(state.current.unit))
        return after + max(0.0, left - after - (state.last_at - state.current.begun) - self.quiet)
