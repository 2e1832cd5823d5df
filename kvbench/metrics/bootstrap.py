"""Differences of graded answers, by drawing the questions again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from kvbench.metrics.distributions import normal_quantile, t_quantile, t_two_sided
from kvbench.metrics.means import PairedTest, differences

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 10_000
"""Bootstrap resamples: the smallest p is 1e-4, which Holm over 500 tests leaves below 0.05."""
_KEPT_COUNTS = 16_000_000
"""Resampling counts (2 bytes each) up to which they are drawn once for all methods with as many questions."""


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> PairedTest:
    """Bootstrap of the mean of b - a over questions: expanded percentile interval, and the two-sided p of no difference.

    The plain percentile interval of few questions is too narrow. Here its tails are Φ(-√(n/(n-1)) · t(n-1, (1+confidence)/2)),
    so that it is as wide as Student's where the differences are normal. p goes the same way back: the share of resampled
    means at least |d̄| away from d̄ (counting d̄ itself, so never 0), as a normal deviate, over √(n/(n-1)), in Student's tails.
    Seeded: the same scores give the same figures. Equal scores give [0, 0] and p = 1; one question gives no interval and no p.

    Source: Hesterberg (2015), "What teachers should know about the bootstrap" (the expanded percentile interval);
    Davison & Hinkley (1997), "Bootstrap methods and their application", §4.4.

    Raises:
        ValueError: different lengths, or no values.
    """
    return _bootstrap(tuple(differences(a, b)), confidence, resamples, seed)


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
