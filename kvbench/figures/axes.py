"""Scales and their ticks, for the dashboard's plots and a report's alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to [0, 1], linearly or by logarithm (then low > 0)."""

    low: float
    high: float
    log: bool = False

    def fraction(self, value: float) -> float:
        """Where the value lies, clipped to the scale's ends."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int) -> list[float]:
        """Round values within the scale, about ``count`` of them."""
        found = _log_ticks(self.low, self.high, count) if self.log else []
        return found if len(found) > 1 else _linear_ticks(self.low, self.high, count)


def padded(values: Sequence[float], *, log: bool = False, pad: float = 0.06) -> Scale:
    """A scale that holds all values with a little room at both ends."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** pad, 1.02)
        return Scale(low / room, high * room, log=True)
    room = (high - low) * pad or max(abs(high) * 0.05, 0.5)
    return Scale(low - room, high + room)


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Decades, with 2 and 5 (or 3) between them where there is room."""
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        if len(found) <= count + 1:
            return found
    stride = -(-len(found) // max(1, count))
    return found[::stride]
