"""Histograms of KL divergence, so that percentiles merge over samples, methods' groups and machines by addition.

Bins are 1/32 octave wide above 1e-12 nats, and one bin holds what lies below. Only the functions over whole arrays
import NumPy, and only when called.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KL_FLOOR = 1e-12
"""Divergences up to here (nats) are rounding and share bin 0."""
KL_BINS_PER_OCTAVE = 32
Histogram = Mapping[int, int]
"""Sparse counts: bin index → number of tokens; bins never named hold none."""


def kl_bin_index(kl: Any) -> NDArray[np.int64]:
    """Bin of each divergence: 0 up to 1e-12 nats, else 1 + ⌊32 · log2(kl / 1e-12)⌋.

    Args:
        kl: Array (any shape) of divergences in nats; slightly negative ones are rounding and go to bin 0.

    Returns:
        int64 array of the same shape, all ≥ 0 (``numpy.bincount`` takes it; 100 nats lie in bin 1488).

    Raises:
        ValueError: a NaN or an infinity.
    """
    import numpy as np

    values = np.asarray(kl, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a KL divergence is not finite")
    octaves = np.log2(np.maximum(values, KL_FLOOR) / KL_FLOOR)
    return np.where(values <= KL_FLOOR, 0, 1 + np.floor(KL_BINS_PER_OCTAVE * octaves)).astype(np.int64)


def kl_bin_value(index: int) -> float:
    """The geometric middle of a bin, in nats: within 2^(1/64) - 1 = 1.09 % of everything in it; bin 0 gives 0."""
    return KL_FLOOR * 2.0 ** ((index - 0.5) / KL_BINS_PER_OCTAVE) if index else 0.0


def histogram(indices: Any) -> dict[int, int]:
    """Sparse counts of an array of bin indices."""
    import numpy as np

    bins, counts = np.unique(np.asarray(indices), return_counts=True)
    return {int(b): int(c) for b, c in zip(bins, counts, strict=True)}


def merge(histograms: Iterable[Histogram]) -> dict[int, int]:
    """The histogram of all their values together: counts add, in any order and grouping."""
    total: Counter[int] = Counter()
    for one in histograms:
        total.update(one)
    return dict(sorted(total.items()))


def quantile(hist: Histogram, q: float) -> float:
    """The ⌈q·n⌉-th smallest value (``inverted_cdf``), in nats, to a relative error of 1.1 %.

    Values up to 1e-12 nats come back as 0.

    Raises:
        ValueError: an empty histogram, or q outside [0, 1].
    """
    total = sum(hist.values())
    if not total or not 0.0 <= q <= 1.0:
        raise ValueError(f"no quantile {q} of {total} values")
    bins = sorted(hist)
    rank = max(1, math.ceil(q * total * (1 - 1e-12)))
    return kl_bin_value(bins[bisect_left(list(accumulate(hist[b] for b in bins)), rank)])


def histogram_to_json(hist: Histogram) -> dict[str, int]:
    """JSON form, ``{"bin index": count}``, without empty bins."""
    return {str(index): count for index, count in sorted(hist.items()) if count}


def histogram_from_json(data: Mapping[str, int]) -> dict[int, int]:
    return {int(index): count for index, count in data.items()}
