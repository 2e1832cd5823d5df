"""What a worker is busy with, since when, and how long that may take.

A method has its limit in every unit, from what others took in units of the same evaluator: ``FACTOR`` times the slowest so far, and
``LEAST`` seconds at least. The baseline is what others are held to, and stands for what all methods do together: it has
``LEAST_ALONE``, and so has a unit in which no method is in flight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from kvbench.record import events as ev
from kvbench.spec import BASELINE, Unit

FACTOR = 20.0
LEAST = 600.0
LEAST_ALONE = 3600.0
BUDGETS = "meeting budgets"
"""Stands for an evaluator before the first unit."""


@dataclass(frozen=True)
class Flight:
    """``method`` (``None``: none yet) in ``unit``, since ``since`` on the clock of whoever listens."""

    unit: str
    method: str | None
    kind: str
    since: float


class Limits:
    """Hears what a worker says. ``asked`` is the run's ``method_timeout``."""

    def __init__(self, asked: float | Literal["auto", "off"], units: Mapping[str, Unit]) -> None:
        self._asked, self._units = asked, units
        self._slowest: dict[str, float] = {}
        self._unit: str | None = None
        self.flight: Flight | None = None

    def replay(self, events: Iterable[ev.Event]) -> None:
        """Learn from a journal what its methods took."""
        for event in events:
            self.hear(event, event.at)
            if isinstance(event, ev.WorkerStarted | ev.RunResumed):
                self.worker_ended()
        self.worker_ended()

    def hear(self, event: ev.Event, now: float) -> None:
        if isinstance(event, ev.UnitStarted):
            self._land(now)
            self._unit, self.flight = event.unit, Flight(event.unit, None, self._kind(event.unit), now)
        elif isinstance(event, ev.MethodStarted):
            self._land(now)
            self.flight = Flight(event.unit, event.method, self._kind(event.unit) if event.unit == self._unit else BUDGETS, now)
        elif isinstance(event, ev.UnitFinished | ev.BudgetSolved):
            self._land(now)
            self._unit, self.flight = None, None
        elif isinstance(event, ev.MethodFailed):
            self._land(now)
            self.flight = Flight(event.unit, None, self._kind(event.unit), now) if self._unit else None

    def worker_ended(self) -> None:
        """Nothing is in flight any more; what was has told nothing."""
        self._unit, self.flight = None, None

    def forgive(self, seconds: float) -> None:
        """Time in which the worker could not go on, being stopped."""
        if self.flight is not None:
            self.flight = Flight(self.flight.unit, self.flight.method, self.flight.kind, self.flight.since + seconds)

    def overdue(self, now: float) -> str | None:
        """Why what is in flight must end, in words, or ``None``."""
        most, why = self._most()
        if self.flight is None or most is None or now - self.flight.since <= most:
            return None
        return f"took longer than {most:g} s, {why}; --method-timeout sets another"

    def _most(self) -> tuple[float | None, str]:
        if self.flight is None or self._asked == "off":
            return None, ""
        if self._asked != "auto" and self.flight.method is not None:
            return float(self._asked), "its limit in a unit"
        least = LEAST_ALONE if self.flight.method in (None, BASELINE) else LEAST
        others = FACTOR * self._slowest.get(self.flight.kind, 0.0)
        return max(least, others), f"{FACTOR:.0f} times what the slowest took" if others > least else "the least that a method is given"

    def _land(self, now: float) -> None:
        """What was in flight came to its end."""
        if self.flight is not None and self.flight.method is not None:
            kind = self.flight.kind
            self._slowest[kind] = max(self._slowest.get(kind, 0.0), now - self.flight.since)

    def _kind(self, unit: str) -> str:
        return self._units[unit].evaluator if unit in self._units else BUDGETS
