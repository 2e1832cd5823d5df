"""Repeats of one measurement against repeats of another, by their ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from kvbench.metrics.distributions import normal_quantile, u_cumulative

_EXACT_PAIRS = 400
"""Mann-Whitney is exact up to this many pairs (20 against 20 repeats); counting them takes some milliseconds."""


@dataclass(frozen=True)
class RankTest:
    """Mann-Whitney: ``u`` counts the pairs (a, b) with a > b, ties by half; ``p`` is two-sided."""

    u: float
    p: float
    exact: bool


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> RankTest:
    """Mann-Whitney U test of two independent sets of repeats, two-sided.

    Exact when no value is tied and there are at most 400 pairs; otherwise normal with μ = mn/2,
    σ² = mn/12 · (N+1 - Σ(t³-t)/(N(N-1))) over tie groups of size t, and continuity correction ½.
    Source: Mann & Whitney (1947); ties as in Lehmann (1975), "Nonparametrics", §1.4.

    Raises:
        ValueError: an empty side.
    """
    m, n = len(a), len(b)
    if not m or not n:
        raise ValueError("both sides need at least one repeat")
    u = _pairs_above(a, b)
    ties = [size for size in (len(list(group)) for _, group in groupby(sorted([*a, *b]))) if size > 1]
    if not ties and m * n <= _EXACT_PAIRS:
        tail = u_cumulative(m, n)[int(min(u, m * n - u))]
        return RankTest(u, min(1.0, 2.0 * tail), exact=True)
    total = m + n
    variance = m * n / 12.0 * (total + 1 - sum(t**3 - t for t in ties) / (total * (total - 1)))
    if variance == 0.0:
        return RankTest(u, 1.0, exact=False)
    z = max(0.0, abs(u - m * n / 2.0) - 0.5) / math.sqrt(variance)
    return RankTest(u, math.erfc(z / math.sqrt(2.0)), exact=False)


def shift_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval of the shift from a to b that Mann-Whitney does not reject: the k-th smallest and largest b - a.

    k is the largest rank whose tail, P(U < k), is at most (1 - confidence)/2. ``None`` when there are too few
    repeats for any difference to be shown (3 against 3 at 95 %). Without ties it excludes 0 exactly when the
    exact test has p < 1 - confidence, up to equality. Source: Hodges & Lehmann (1963); Lehmann (1975), §2.6.
    """
    m, n = len(a), len(b)
    shifts = sorted(y - x for x in a for y in b)
    tail = (1.0 - confidence) / 2.0
    if m * n <= _EXACT_PAIRS:
        k = sum(p <= tail for p in u_cumulative(m, n))
    else:
        k = math.floor(m * n / 2.0 - normal_quantile(1.0 - tail) * math.sqrt(m * n * (m + n + 1) / 12.0))
    return (shifts[k - 1], shifts[-k]) if k >= 1 else None


def smallest_p(m: int, n: int) -> float:
    """The smallest two-sided p that Mann-Whitney can give for m against n repeats: 2 / C(m+n, m)."""
    return min(1.0, 2.0 / math.comb(m + n, m)) if m and n else 1.0


def _pairs_above(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(1.0 if x > y else 0.5 if x == y else 0.0 for x in a for y in b)
