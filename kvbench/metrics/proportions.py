"""Shares of answers that are right: their intervals, and two shares of the same questions."""

from __future__ import annotations

import math
from functools import lru_cache

from kvbench.metrics.distributions import normal_quantile
from kvbench.metrics.means import Interval


def wilson_interval(successes: float, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion: (p̂ + z²/2n ± z√(p̂(1-p̂)/n + z²/4n²)) / (1 + z²/n).

    It stays within [0, 1] and is sound at 0 and 1, where p̂ ± z·s is not. It takes the trials as independent; tokens
    of one text are not quite, so prefer an interval over samples where there are several.
    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    Raises:
        ValueError: no trials, or successes outside [0, trials].
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is no proportion")
    p, z = successes / trials, normal_quantile((1.0 + confidence) / 2.0)
    shrink = 1.0 + z * z / trials
    centre = (p + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(p * (1.0 - p) / trials + z * z / (4.0 * trials * trials)) / shrink
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), trials)


def mcnemar(b: int, c: int) -> float:
    """Two-sided p of McNemar's test, exact: 2 · P(X ≤ min(b, c)) for X ~ Binomial(b + c, ½), at most 1.

    Args:
        b, c: Questions that only the one, and only the other, answers rightly; no such question gives p = 1.

    Source: McNemar (1947); the exact conditional form is the sign test of the discordant pairs.

    Raises:
        ValueError: a negative count.
    """
    if b < 0 or c < 0:
        raise ValueError(f"{b} and {c} are no counts")
    return min(1.0, 2.0 * _half_binomial_tail(min(b, c), b + c))


def newcombe_interval(both: int, only_a: int, only_b: int, neither: int, confidence: float = 0.95) -> Interval:
    """Interval of p_b - p_a of two proportions on the same trials, from the four counts of a paired 2 x 2 table.

    Wilson's bounds of either proportion are combined by the square-and-add rule with their correlation φ, whose numerator
    has a continuity correction of n/2. It stays sound where the two never disagree, which Wald's interval does not.
    Source: Newcombe (1998), "Improved confidence intervals for the difference between binomial proportions based on
    paired data", method 10.

    Raises:
        ValueError: no trials, or a negative count.
    """
    n = both + only_a + only_b + neither
    if min(both, only_a, only_b, neither) < 0:
        raise ValueError(f"{both}, {only_a}, {only_b}, {neither} are no counts")
    a, b = wilson_interval(both + only_a, n, confidence), wilson_interval(both + only_b, n, confidence)
    phi = _corrected_phi(both, only_a, only_b, neither)
    (a_down, a_up), (b_down, b_up) = _distances(a), _distances(b)
    value = (only_b - only_a) / n
    low = value - math.sqrt(max(0.0, b_down**2 - 2 * phi * b_down * a_up + a_up**2))
    high = value + math.sqrt(max(0.0, a_down**2 - 2 * phi * a_down * b_up + b_up**2))
    return Interval(value, max(-1.0, low), min(1.0, high), n)


@lru_cache(maxsize=4096)
def _half_binomial_tail(most: int, n: int) -> float:
    """P(X ≤ most) for X ~ Binomial(n, ½), in whole numbers until the last division."""
    term = total = 1
    for k in range(1, most + 1):
        term = term * (n - k + 1) // k
        total += term
    return total / (1 << n)


def _corrected_phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Newcombe's φ of a paired table: 0 where a margin is empty; a positive numerator is lessened by n/2, to no less than 0."""
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if not margins:
        return 0.0
    agreement = both * neither - only_a * only_b
    n = both + only_a + only_b + neither
    return (agreement if agreement < 0 else max(0.0, agreement - n / 2.0)) / math.sqrt(margins)


def _distances(found: Interval) -> tuple[float, float]:
    """How far the bounds lie below and above the value."""
    return found.value - (found.low or 0.0), (1.0 if found.high is None else found.high) - found.value
