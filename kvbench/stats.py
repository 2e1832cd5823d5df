"""Intervals, tests and (from ``kvbench.histogram``) mergeable histograms: plain Python, so that ``compare`` starts at once.

Importing NumPy takes longer than all of ``compare``'s own work, and SciPy several times that; the few
distributions needed (``kvbench.distributions``) are short. The tests hold all of it to SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from kvbench.distributions import normal_quantile, t_quantile, t_two_sided, u_cumulative
from kvbench.histogram import Histogram, histogram, histogram_from_json, histogram_to_json, kl_bin_index, kl_bin_value, merge, quantile

__all__ = [
    "Histogram", "Interval", "PairedTest", "RankTest", "ece", "histogram", "histogram_from_json", "histogram_to_json", "holm",
    "kl_bin_index", "kl_bin_value", "mann_whitney", "mean_interval", "median", "merge", "paired_interval", "paired_test",
    "quantile", "shift_interval", "smallest_p", "wilson_interval",
]  # fmt: skip

_EXACT_PAIRS = 400
"""Mann-Whitney is exact up to this many pairs (20 against 20 repeats); counting them takes some milliseconds."""


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
