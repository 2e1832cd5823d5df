"""Every statistic against SciPy, its textbook value, or the plain computation it stands for."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import scipy.special
import scipy.stats

from kvbench.metrics import distributions as dist
from kvbench.metrics import stats

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("df", [1, 2, 3, 7, 31, 255])
def test_t_distribution_is_scipys(df: int) -> None:
    for t in (1e-3, 0.1, 1.0, 2.5, 12.0, 400.0):
        assert dist.t_two_sided(t, df) == pytest.approx(2 * scipy.stats.t.sf(t, df), rel=1e-10)
    for confidence in (0.5, 0.9, 0.95, 0.999):
        assert dist.t_quantile(confidence, df) == pytest.approx(scipy.stats.t.ppf((1 + confidence) / 2, df), rel=1e-10)


def test_t_tails_end_in_zero_and_one() -> None:
    assert dist.t_two_sided(0.0, 5) == 1.0
    assert dist.t_two_sided(math.inf, 5) == 0.0


@pytest.mark.parametrize("p", [1e-6, 0.025, 0.5, 0.8, 0.975])
def test_normal_quantile_is_scipys(p: float) -> None:
    assert dist.normal_quantile(p) == pytest.approx(scipy.special.ndtri(p), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("n", [2, 8, 40])
def test_mean_and_paired_intervals_are_scipys(n: int) -> None:
    a, b = RNG.normal(3.0, 1.0, n), RNG.normal(3.4, 1.0, n)
    low, high = scipy.stats.t.interval(0.95, n - 1, loc=b.mean(), scale=scipy.stats.sem(b))
    found = stats.mean_interval(b.tolist())
    assert (found.value, found.low, found.high) == pytest.approx((b.mean(), low, high), rel=1e-9)
    paired = stats.paired_interval(a.tolist(), b.tolist(), 0.9)
    wanted = scipy.stats.ttest_rel(b, a).confidence_interval(0.9)
    assert (paired.low, paired.high) == pytest.approx((wanted.low, wanted.high), rel=1e-9)


def test_paired_test_is_scipys() -> None:
    a, b = RNG.normal(3.0, 1.0, 9), RNG.normal(3.4, 1.0, 9)
    found = stats.paired_test(a.tolist(), b.tolist())
    assert found.difference == pytest.approx((b - a).mean())
    assert found.p == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_paired_test_at_its_edges() -> None:
    assert stats.paired_test([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert stats.paired_test([1.0, 2.0], [1.5, 2.5]).p == 0.0
    single = stats.paired_test([1.0], [2.0])
    assert (single.difference, single.low, single.p) == (1.0, None, None)
    with pytest.raises(ValueError, match="same samples"):
        stats.paired_test([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least one"):
        stats.mean_interval([])


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 3), (5, 5), (4, 9), (12, 7)])
def test_mann_whitney_is_exact_without_ties(m: int, n: int) -> None:
    for _ in range(5):
        a, b = RNG.normal(0, 1, m), RNG.normal(0.8, 1, n)
        wanted = scipy.stats.mannwhitneyu(a, b, method="exact")
        found = stats.mann_whitney(a.tolist(), b.tolist())
        assert found.exact
        assert (found.u, found.p) == pytest.approx((wanted.statistic, wanted.pvalue), rel=1e-12)


@pytest.mark.parametrize(("m", "n"), [(6, 6), (9, 14), (30, 30)])
def test_mann_whitney_corrects_for_ties(m: int, n: int) -> None:
    a, b = RNG.integers(0, 6, m).astype(float), RNG.integers(1, 7, n).astype(float)
    wanted = scipy.stats.mannwhitneyu(a, b, method="asymptotic")
    found = stats.mann_whitney(a.tolist(), b.tolist())
    assert not found.exact
    assert (found.u, found.p) == pytest.approx((wanted.statistic, wanted.pvalue), rel=1e-9)


def test_mann_whitney_of_constants_shows_nothing() -> None:
    assert stats.mann_whitney([2.0, 2.0], [2.0, 2.0]).p == 1.0
    with pytest.raises(ValueError, match="both sides"):
        stats.mann_whitney([], [1.0])


def test_u_distribution_counts_every_arrangement() -> None:
    assert dist.u_cumulative(2, 2) == pytest.approx((1 / 6, 2 / 6, 4 / 6, 5 / 6, 1.0))
    assert dist.u_cumulative(7, 4) == pytest.approx(dist.u_cumulative(4, 7))


@pytest.mark.parametrize(("m", "n"), [(4, 4), (5, 7), (10, 10)])
def test_shift_interval_agrees_with_the_test(m: int, n: int) -> None:
    rng = random.Random(m * n)
    seen = set()
    for shift in (0.0, 0.5, 1.0, 1.5, 2.0, 4.0):
        a, b = [rng.gauss(0, 1) for _ in range(m)], [rng.gauss(shift, 1) for _ in range(n)]
        low, high = stats.shift_interval(a, b) or pytest.fail("enough repeats for an interval")
        differs = stats.mann_whitney(a, b).p < 0.05
        assert differs == (low > 0 or high < 0)
        seen.add(differs)
    assert seen == {True, False}


def test_shift_interval_refuses_too_few_repeats_and_covers() -> None:
    assert stats.shift_interval([1, 2, 3], [4, 5, 6]) is None
    assert stats.smallest_p(3, 3) == pytest.approx(0.1)
    rng = random.Random(1)
    inside = 0
    for _ in range(400):
        low, high = stats.shift_interval([rng.random() for _ in range(6)], [rng.random() + 2 for _ in range(6)]) or (0, 0)
        inside += low <= 2 <= high
    assert 0.93 <= inside / 400 <= 0.99


def test_large_shift_interval_takes_its_rank_from_the_normal() -> None:
    """k = ⌊mn/2 - z · √(mn(m+n+1)/12)⌋: here 21 · 20/2 - 1.96 · √(420 · 42/12)."""
    a, b = RNG.normal(0, 1, 21), RNG.normal(1, 1, 20)
    shifts = np.sort(np.subtract.outer(b, a).ravel())
    k = math.floor(210 - scipy.special.ndtri(0.975) * math.sqrt(420 * 42 / 12))
    assert stats.shift_interval(a.tolist(), b.tolist()) == pytest.approx((shifts[k - 1], shifts[-k]), rel=1e-12)


def test_mann_whitney_counts_arrangements_up_to_four_hundred_pairs() -> None:
    a, b = RNG.normal(0, 1, 20).tolist(), RNG.normal(0.5, 1, 20).tolist()
    assert stats.mann_whitney(a, b).exact
    many = stats.mann_whitney([*a, 9.0], b)
    assert not many.exact
    assert many.p == pytest.approx(scipy.stats.mannwhitneyu([*a, 9.0], b, method="asymptotic").pvalue, rel=1e-9)
    low, high = stats.shift_interval(a, b) or pytest.fail("enough repeats")
    k = int(np.count_nonzero(np.array(dist.u_cumulative(20, 20)) <= 0.025))
    shifts = np.sort(np.subtract.outer(b, a).ravel())
    assert (low, high) == pytest.approx((shifts[k - 1], shifts[-k]), rel=1e-12)


def test_holm_is_the_published_example() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert stats.holm([]) == []


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (500, 512), (10, 10)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    wanted = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    found = stats.wilson_interval(k, n)
    assert (found.value, found.low, found.high) == pytest.approx((k / n, wanted.low, wanted.high), rel=1e-9, abs=1e-12)


def test_wilson_refuses_no_trials() -> None:
    with pytest.raises(ValueError, match="no proportion"):
        stats.wilson_interval(1, 0)


def test_ece_weighs_bins_by_their_tokens() -> None:
    assert stats.ece([(10, 9.0, 8.0), (30, 15.0, 18.0), (0, 0.0, 0.0)]) == pytest.approx((1 + 3) / 40)
    with pytest.raises(ValueError, match="at least one token"):
        stats.ece([(0, 0, 0)])


def test_median() -> None:
    assert (stats.median([3, 1, 2]), stats.median([4, 1, 2, 3])) == (2, 2.5)
    with pytest.raises(ValueError, match="at least one"):
        stats.median([])


@pytest.mark.parametrize("q", [0.0, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_histogram_quantiles_are_within_their_error(q: float) -> None:
    kl = np.exp(RNG.normal(-6, 4, 5000))
    found = stats.quantile(stats.histogram(stats.kl_bin_index(kl)), q)
    assert found == pytest.approx(np.quantile(kl, q, method="inverted_cdf"), rel=0.011)


def test_histograms_merge_by_addition_and_survive_json() -> None:
    parts = np.split(np.exp(RNG.normal(-6, 3, 900)), [100, 101, 500])
    whole = stats.histogram(stats.kl_bin_index(np.concatenate(parts)))
    merged = stats.merge(stats.histogram_from_json(stats.histogram_to_json(stats.histogram(stats.kl_bin_index(p)))) for p in parts)
    assert merged == whole
    assert sum(merged.values()) == 900
    assert stats.histogram_to_json({40: 2, 7: 0, 3: 1}) == {"3": 1, "40": 2}, "no empty bin is written"


def test_rounding_sits_in_the_zero_bin_and_the_rest_above_it() -> None:
    index = stats.kl_bin_index(np.array([[-1e-9, 0.0], [1e-12, 1.1e-12]]))
    assert index.tolist() == [[0, 0], [0, 1 + math.floor(32 * math.log2(1.1))]]
    assert stats.quantile({0: 99, 500: 1}, 0.99) == 0.0
    assert stats.quantile({0: 99, 500: 1}, 0.999) > 0.0
    with pytest.raises(ValueError, match="not finite"):
        stats.kl_bin_index([math.nan])
    for hist, q in (({}, 0.5), ({1: 1}, -0.1), ({1: 1}, 1.1)):
        with pytest.raises(ValueError, match="no quantile"):
            stats.quantile(hist, q)
