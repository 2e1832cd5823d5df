"""Figures as text: fixed decimals, so that columns line up and nothing jumps while it changes."""

from __future__ import annotations

import math
from collections.abc import Callable

MIB = 1024 * 1024
GIB = 1024 * MIB
NONE = "–"
"""What is not known (yet)."""
TIMES = "×"
SKEW = 0.05
"""How much longer one half of an interval may be than the other, as a fraction of both, where ± still stands for it."""


def fixed(value: float | None, decimals: int, width: int = 0) -> str:
    """``value`` with fixed decimals; it gives up decimals, then digits, where ``width`` is too small."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "∞" if value > 0 else "nan" if math.isnan(value) else "-∞"
    text = f"{value:.{decimals}f}"
    while width and len(text) > width and decimals > 0:
        decimals -= 1
        text = f"{value:.{decimals}f}"
    return text if not width or len(text) <= width else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def signed(value: float | None, decimals: int, width: int = 0) -> str:
    """As :func:`fixed`, with the sign always shown."""
    if value is None or not math.isfinite(value):
        return fixed(value, decimals)
    return ("-" if value < 0 else "+") + fixed(abs(value), decimals, max(0, width - 1))


Write = Callable[[float | None, int, int], str]
""":func:`fixed` or :func:`signed`."""


def interval(low: float | None, high: float | None, decimals: int, width: int = 0, write: Write = signed) -> str:
    """``[low, high]``, each at most ``width`` wide; empty where an end is not known."""
    return "" if low is None or high is None else f"[{write(low, decimals, width)}, {write(high, decimals, width)}]"


def with_interval(text: str, low: float | None, high: float | None, decimals: int, width: int = 0, write: Write = signed) -> str:
    """A figure with its interval behind it; the figure alone where none is known."""
    return f"{text} {interval(low, high, decimals, width, write)}".rstrip()


def is_symmetric(value: float, low: float, high: float) -> bool:
    """Whether ``value ± half`` says what ``[low, high]`` does."""
    return abs((high - value) - (value - low)) <= SKEW * (high - low) / 2


def duration(seconds: float | None) -> str:
    """``0:07``, ``12:34``, ``1:02:03``."""
    if seconds is None:
        return f"{NONE}:{NONE}{NONE}"
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def size(count: float | None) -> str:
    """A number of bytes for people, in binary units."""
    if count is None:
        return NONE
    for unit, limit in (("B", 1024.0), ("KiB", MIB), ("MiB", GIB)):
        if count < limit:
            return f"{count:.0f} B" if unit == "B" else f"{count / (limit / 1024):.1f} {unit}"
    return f"{count / GIB:.1f} GiB"


def shorten(text: str, width: int) -> str:
    """Cut to ``width`` cells, with an ellipsis."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…" if width > 0 else ""


def plain_number(value: float) -> str:
    """A tick's label: as few digits as say it."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.0e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.10g}" if abs(value) >= 1 else f"{value:.10g}"
