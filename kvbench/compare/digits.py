"""How figures read: one unit a block, four digits, and as many more as it takes to tell two figures apart."""

from __future__ import annotations

import math
from collections.abc import Iterable

from kvbench.compare.judge import Change, Finding

_STEPS = {
    "bytes": (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("bytes", 1.0)),
    "seconds": (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)),
}


def unit_of(findings: Iterable[Finding]) -> tuple[str, float]:
    """A block's unit and its size in the metric's own: the largest in which the block's largest figure is at least 1."""
    held = list(findings)
    top = max((abs(v) for f in held for v in (f.a, f.b) if v is not None), default=0.0)
    unit = held[0].unit
    steps = _STEPS.get(unit, ())
    return next(((name, size) for name, size in steps if top >= size), steps[-1] if steps else ("" if unit == "1" else unit, 1.0))


def both(a: float | None, b: float | None, size: float = 1.0) -> tuple[str, str]:
    """A and B to four digits, or to the first digit in which they differ."""
    if a is None or b is None:
        return figure(a, size), figure(b, size)
    for digits in range(4, 17):
        texts = figure(a, size, digits), figure(b, size, digits)
        if a == b or texts[0] != texts[1]:
            return texts
    return texts


def figure(value: float | None, size: float = 1.0, digits: int = 4) -> str:
    if value is None:
        return ""
    scaled = value / size
    if scaled and 1e-4 <= abs(scaled) < 1e7:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(scaled))))
        return f"{scaled:,.{decimals}f}"
    return f"{scaled:.{digits}g}"


def change_text(change: Change, size: float = 1.0) -> str:
    """``+1.23 %``, or the absolute change where A is 0."""
    if change.absolute is None:
        return ""
    if change.absolute == 0.0:
        return "="
    return _signed(change.percent) + " %" if change.percent is not None else f"{change.absolute / size:+.3g}"


def interval_text(change: Change, size: float = 1.0) -> str:
    if change.absolute == change.low == change.high:
        return ""
    if change.percent is not None and change.percent_low is not None and change.percent_high is not None:
        return f"[{_signed(change.percent_low)}, {_signed(change.percent_high)}] %"
    if change.percent is None and change.low is not None and change.high is not None:
        return f"[{change.low / size:+.3g}, {change.high / size:+.3g}]"
    return ""


def p_text(p: float | None) -> str:
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _signed(percent: float) -> str:
    """Two decimals, fewer for large changes, and never a change that is not nothing written as 0."""
    if percent and abs(percent) < 0.005:
        return f"{percent:+.1g}"
    return f"{percent:+.2f}" if abs(percent) < 1000 else f"{percent:+.0f}"
