"""Where events come from: a journal that may still grow, or a finished one in time-lapse."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

from kvbench.record import events as ev

LAPSE_SECONDS = 20.0


class Feed(Protocol):
    """Gives the events that came since it was last asked; a run's ``Tail`` is one."""

    def poll(self) -> Sequence[ev.Event]: ...


class LapseFeed:
    """A journal's events again, at a speed that shows the whole run in ``LAPSE_SECONDS``.

    Pauses longer than a fiftieth of the run (an interruption, a download) are cut to that.
    """

    def __init__(self, events: Sequence[ev.Event], clock: Callable[[], float] = time.monotonic) -> None:
        self._events, self._clock = events, clock
        self._due = _due_times(events)
        self._next, self._started = 0, clock()

    @property
    def at_end(self) -> bool:
        return self._next >= len(self._events)

    def poll(self) -> list[ev.Event]:
        elapsed, first = self._clock() - self._started, self._next
        while self._next < len(self._events) and self._due[self._next] <= elapsed:
            self._next += 1
        return list(self._events[first : self._next])


def _due_times(events: Sequence[ev.Event]) -> list[float]:
    """Seconds from the replay's start at which each event is shown."""
    gaps = [0.0, *(max(0.0, b.at - a.at) for a, b in pairwise(events))][: len(events)]
    longest = (sum(gaps) or 1.0) / 50
    cut = [min(gap, longest) for gap in gaps]
    speed = LAPSE_SECONDS / (sum(cut) or 1.0)
    due, total = [], 0.0
    for gap in cut:
        total += gap * speed
        due.append(total)
    return due
