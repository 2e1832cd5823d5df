"""Intervals, tests and (from ``kvbench.metrics.histogram``) mergeable histograms: plain Python, so that ``compare`` starts at once.

Importing NumPy takes longer than all of ``compare``'s own work, and SciPy several times that; the few
distributions needed (``kvbench.metrics.distributions``) are short. The tests hold all of it to SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

from kvbench.metrics.distributions import normal_quantile, t_quantile, t_two_sided, u_cumulative
from kvbench.metrics.histogram import (
    Histogram,
    histogram,
    histogram_from_json,
    histogram_to_json,
    kl_bin_index,
    kl_bin_value,
    merge,
    quantile,
)

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "RESAMPLES", "Histogram", "Interval", "PairedTest", "RankTest", "ece", "histogram", "histogram_from_json", "histogram_to_json",
    "holm", "kl_bin_index", "kl_bin_value", "mann_whitney", "mcnemar", "mean_interval", "median", "merge", "newcombe_interval",
    "paired_bootstrap", "paired_interval", "paired_test", "quantile", "shift_interval", "smallest_p", "wilson_interval",
]  # fmt: skip

_EXACT_PAIRS = 400
"""Mann-Whitney is exact up to this many pairs (20 against 20 repeats); counting them takes some milliseconds."""
RESAMPLES = 10_000
"""Bootstrap resamples: the smallest p is 1e-4, which Holm over 500 tests leaves below 0.05."""
_KEPT_COUNTS = 16_000_000
"""Resampling counts (2 bytes each) up to which they are drawn once for all methods with as many questions."""


@dataclass(frozen=True)
class Interval:
    """An estimate from ``n`` values; the bounds are ``None`` where ``n`` is too small to give any."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class PairedTest:
    """Mean difference b - a on shared samples, its interval, and the two-sided p of "no difference"."""

    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int


@dataclass(frozen=True)
class RankTest:
    """Mann-Whitney: ``u`` counts the pairs (a, b) with a > b, ties by half; ``p`` is two-sided."""

    u: float
    p: float
    exact: bool


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the middle two.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("a median needs at least one value")
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2.0


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of a mean: x̄ ± t(n-1, (1+confidence)/2) · s/√n.

    Source: Student (1908), "The probable error of a mean"; s is the sample standard deviation (n-1).

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if not n:
        raise ValueError("a mean needs at least one value")
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, None, None, n)
    half = t_quantile(confidence, n - 1) * _standard_error(values, mean)
    return Interval(mean, mean - half, mean + half, n)


def paired_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """t interval of the mean of b - a, sample by sample; the same tokens must stand at the same places.

    Raises:
        ValueError: different lengths, or no values.
    """
    return mean_interval(_differences(a, b), confidence)


def paired_test(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> PairedTest:
    """Paired t test of b against a: t = d̄ / (s_d/√n) with n-1 degrees of freedom, two-sided.

    Equal samples give p = 1; a difference that is the same in all samples gives p = 0; one sample gives no p.
    Source: Student (1908).

    Raises:
        ValueError: different lengths, or no values.
    """
    differences = _differences(a, b)
    found = mean_interval(differences, confidence)
    if found.n < 2:
        return PairedTest(found.value, None, None, None, found.n)
    error = _standard_error(differences, found.value)
    p = t_two_sided(found.value / error, found.n - 1) if error else float(found.value == 0.0)
    return PairedTest(found.value, found.low, found.high, p, found.n)


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> RankTest:
    """Mann-Whitney U test of two independent sets of repeats, two-sided.

    Exact when no value is tied and there are at most 400 pairs; otherwise normal with μ = mn/2,
    σ² = mn/12 · (N+1 - Σ(t³-t)/(N(N-1))) over tie groups of size t, and continuity correction ½.
    Source: Mann & Whitney (1947); ties as in Lehmann (1975), "Nonparametrics", 1.4.

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
    exact test has p < 1 - confidence, up to equality. Source: Hodges & Lehmann (1963); Lehmann (1975), 2.6.
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


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: p₍ᵢ₎ · (k - i + 1), made monotone, at most 1; order is kept.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    order = sorted(range(len(ps)), key=ps.__getitem__)
    adjusted = [0.0] * len(ps)
    steps = accumulate((min(1.0, ps[i] * (len(ps) - rank)) for rank, i in enumerate(order)), max)
    for i, value in zip(order, steps, strict=True):
        adjusted[i] = value
    return adjusted


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


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> PairedTest:
    """Bootstrap of the mean of b - a over questions: expanded percentile interval, and the two-sided p of no difference.

    The plain percentile interval of few questions is too narrow. Here its tails are Φ(-√(n/(n-1)) · t(n-1, (1+confidence)/2)),
    so that it is as wide as Student's where the differences are normal. p goes the same way back: the share of resampled
    means at least |d̄| away from d̄ (counting d̄ itself, so never 0), as a normal deviate, over √(n/(n-1)), in Student's tails.
    Seeded: the same scores give the same figures. Equal scores give [0, 0] and p = 1; one question gives no interval and no p.

    Source: Hesterberg (2015), "What teachers should know about the bootstrap" (the expanded percentile interval);
    Davison & Hinkley (1997), "Bootstrap methods and their application", 4.4.

    Raises:
        ValueError: different lengths, or no values.
    """
    return _bootstrap(tuple(_differences(a, b)), confidence, resamples, seed)


def ece(bins: Iterable[tuple[float, float, float]]) -> float:
    """Expected calibration error: Σ_b (n_b/N) · |accuracy_b - confidence_b| = Σ_b |correct_b - confidence sum_b| / N.

    Args:
        bins: (count, sum of confidences, number correct) of each confidence bin; such sums merge by addition.

    Source: Naeini et al. (2015); Guo et al. (2017), "On calibration of modern neural networks", eq. 3.

    Raises:
        ValueError: no tokens in any bin.
    """
    held = list(bins)
    total = math.fsum(count for count, _, _ in held)
    if not total:
        raise ValueError("calibration needs at least one token")
    return math.fsum(abs(correct - confidence) for _, confidence, correct in held) / total


def _standard_error(values: Sequence[float], mean: float) -> float:
    n = len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    if len(a) != len(b):
        raise ValueError(f"paired values need the same samples: {len(a)} against {len(b)}")
    return [y - x for x, y in zip(a, b, strict=True)]


def _pairs_above(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(1.0 if x > y else 0.5 if x == y else 0.0 for x in a for y in b)


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


@lru_cache(maxsize=256)
def _bootstrap(differences: tuple[float, ...], confidence: float, resamples: int, seed: int) -> PairedTest:
    """See :func:`paired_bootstrap`; kept, since displays ask again while other figures change."""
    import numpy as np

    n = len(differences)
    if not n:
        raise ValueError("a mean needs at least one value")
    mean = math.fsum(differences) / n
    if n < 2:
        return PairedTest(mean, None, None, None, n)
    means = np.concatenate([chunk @ np.asarray(differences) for chunk in _resampled_counts(n, resamples, seed)]) / n
    widening = math.sqrt(n / (n - 1))
    tail = math.erfc(widening * t_quantile(confidence, n - 1) / math.sqrt(2.0)) / 2.0
    low, high = np.quantile(means, (tail, 1.0 - tail)).tolist()
    beyond = int(np.count_nonzero(np.abs(means - mean) >= abs(mean) * (1.0 - 1e-12)))
    share = (1 + beyond) / (1 + resamples)
    p = 1.0 if share == 1.0 else t_two_sided(normal_quantile(1.0 - share / 2.0) / widening, n - 1)
    return PairedTest(mean, low, high, p, n)


def _resampled_counts(n: int, resamples: int, seed: int) -> Iterator[np.ndarray[tuple[int, int], np.dtype[np.uint16]]]:
    """How often each of ``n`` questions is drawn in each resample, some resamples at a time: ``[≤ resamples, n]``."""
    if n * resamples <= _KEPT_COUNTS:
        yield from _kept_counts(n, resamples, seed)
    else:
        yield from _drawn_counts(n, resamples, seed)


@lru_cache(maxsize=2)
def _kept_counts(n: int, resamples: int, seed: int) -> list[np.ndarray[tuple[int, int], np.dtype[np.uint16]]]:
    return list(_drawn_counts(n, resamples, seed))


def _drawn_counts(n: int, resamples: int, seed: int) -> Iterator[np.ndarray[tuple[int, int], np.dtype[np.uint16]]]:
    import numpy as np

    generator = np.random.default_rng(seed)
    at_once = max(1, 500_000 // n)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.uint16)
