"""Means of samples, and of their differences, with Student's intervals and test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvbench.metrics.distributions import t_quantile, t_two_sided


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
    return mean_interval(differences(a, b), confidence)


def paired_test(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> PairedTest:
    """Paired t test of b against a: t = d̄ / (s_d/√n) with n-1 degrees of freedom, two-sided.

    Equal samples give p = 1; a difference that is the same in all samples gives p = 0; one sample gives no p.
    Source: Student (1908).

    Raises:
        ValueError: different lengths, or no values.
    """
    apart = differences(a, b)
    found = mean_interval(apart, confidence)
    if found.n < 2:
        return PairedTest(found.value, None, None, None, found.n)
    error = _standard_error(apart, found.value)
    p = t_two_sided(found.value / error, found.n - 1) if error else float(found.value == 0.0)
    return PairedTest(found.value, found.low, found.high, p, found.n)


def differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """b - a, sample by sample.

    Raises:
        ValueError: different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"paired values need the same samples: {len(a)} against {len(b)}")
    return [y - x for x, y in zip(a, b, strict=True)]


def _standard_error(values: Sequence[float], mean: float) -> float:
    n = len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
