"""How often a dashboard is drawn, so that the benchmark keeps its cores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PAUSE = (0.25, 2.0)
"""Least and most seconds between two drawings; between them, ``SHARE`` rules."""
SHARE = 0.025
"""Share of one core that drawing may take."""
DEAR = 10
"""A drawing of t seconds of processor time (very many samples) is followed by at least DEAR · t seconds without one."""


class Pace:
    """When the last drawing was, and what it cost."""

    def __init__(self) -> None:
        self._drawn_at, self._drawn_cpu, self._cost = float("-inf"), time.process_time(), 0.0

    @property
    def is_rested(self) -> bool:
        """Whether the processor time since the last drawing, its own included, is a small enough share."""
        spent = time.process_time() - self._drawn_cpu
        most = max(PAUSE[1], DEAR * self._cost)
        return time.monotonic() - self._drawn_at >= min(most, max(PAUSE[0], spent / SHARE))

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """While one is made."""
        self._drawn_at, self._drawn_cpu = time.monotonic(), time.process_time()
        yield
        self._cost = time.process_time() - self._drawn_cpu
