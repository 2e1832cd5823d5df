"""The distributions behind ``kvbench.metrics.stats``: Student's t, the normal, and Mann-Whitney's U, in plain Python.

SciPy has them all, but importing it takes longer than ``compare`` may take whole. The tests hold each to SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate


def t_two_sided(t: float, df: float) -> float:
    """P(|T| ≥ |t|) for Student's t: the regularised incomplete beta I_x(df/2, ½) at x = df/(df + t²)."""
    square = t * t
    if math.isinf(square):
        return 0.0
    return _beta_regularised(df / (df + square), square / (df + square), df / 2.0, 0.5)


@lru_cache(maxsize=256)
def t_quantile(confidence: float, df: float) -> float:
    """The t with P(|T| ≤ t) = confidence."""
    return _solve_decreasing(lambda t: t_two_sided(t, df), 1.0 - confidence)


@lru_cache(maxsize=16)
def normal_quantile(p: float) -> float:
    """The z with Φ(z) = p, for p in (0, 1)."""
    tail = _solve_decreasing(lambda z: math.erfc(z / math.sqrt(2.0)), 2.0 * min(p, 1.0 - p))
    return tail if p >= 0.5 else -tail


@lru_cache(maxsize=128)
def u_cumulative(m: int, n: int) -> tuple[float, ...]:
    """P(U ≤ u) for u = 0 … mn under no difference, without ties.

    The counts are the coefficients of the Gaussian binomial [m+n choose m] = Π_{i=1..m} (1 - q^{n+i}) / (1 - q^i).
    """
    counts = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for u in range(m * n, n + i - 1, -1):
            counts[u] -= counts[u - n - i]
        for u in range(i, m * n + 1):
            counts[u] += counts[u - i]
    ways = math.comb(m + n, m)
    return tuple(total / ways for total in accumulate(counts))


def _solve_decreasing(tail: Callable[[float], float], target: float) -> float:
    """The x ≥ 0 with tail(x) = target, by bisection to the last bit."""
    low, high = 0.0, 1.0
    while tail(high) > target:
        high *= 2.0
    while (middle := (low + high) / 2.0) not in (low, high):
        low, high = (middle, high) if tail(middle) > target else (low, middle)
    return middle


def _beta_regularised(x: float, rest: float, a: float, b: float) -> float:
    """I_x(a, b) with rest = 1 - x given apart, since 1 - x loses digits near 1. Source: DLMF 8.17.22."""
    if x <= 0.0 or rest <= 0.0:
        return 0.0 if x <= 0.0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(x, a, b) / a
    return 1.0 - front * _beta_fraction(rest, b, a) / b


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta, evaluated by Lentz's method (Numerical Recipes §6.4)."""
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0) or tiny)
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d or tiny)
            c = 1.0 + term / c or tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-16:
            break
    return value
