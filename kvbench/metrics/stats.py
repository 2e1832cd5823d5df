"""Statistics, by whatever module has them: plain Python, so that ``compare`` starts at once.

``means``      Student's intervals and paired test          ``proportions``  of right answers: Wilson, McNemar, Newcombe
``bootstrap``  of graded answers                            ``repeats``      of times: Mann-Whitney and its shift
``histogram``  that merge                                   ``distributions``  what all of them ask for probabilities

Importing NumPy takes longer than all of ``compare``'s own work, and SciPy several times that; the few
distributions needed are short. The tests hold all of it to SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate

from kvbench.metrics.bootstrap import RESAMPLES, paired_bootstrap
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
from kvbench.metrics.means import Interval, PairedTest, mean_interval, median, paired_interval, paired_test
from kvbench.metrics.proportions import mcnemar, newcombe_interval, wilson_interval
from kvbench.metrics.repeats import RankTest, mann_whitney, shift_interval, smallest_p

__all__ = [
    "RESAMPLES", "Histogram", "Interval", "PairedTest", "RankTest", "ece", "histogram", "histogram_from_json", "histogram_to_json",
    "holm", "kl_bin_index", "kl_bin_value", "mann_whitney", "mcnemar", "mean_interval", "median", "merge", "newcombe_interval",
    "paired_bootstrap", "paired_interval", "paired_test", "quantile", "shift_interval", "smallest_p", "wilson_interval",
]  # fmt: skip


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
