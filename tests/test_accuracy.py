"""Accuracies of scored questions: intervals, paired tests and the correction, against SciPy and figures reckoned by hand."""

from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest
import scipy.stats

from kvbench.metrics import accuracy, bootstrap, stats
from kvbench.metrics.accuracy import BOOTSTRAP, MCNEMAR, STUDENT, WILSON, accuracies, corrected, measured, notes, table

DRAW = random.Random(7)


def keyed(values: list[float]) -> dict[str, float]:
    return {str(i): float(v) for i, v in enumerate(values)}


def binary(n: int, right: float, seed: int) -> dict[str, float]:
    draw = random.Random(seed)
    return keyed([float(draw.random() < right) for _ in range(n)])


# Tests and intervals of kvbench.metrics.stats


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (5, 0), (3, 12), (9, 9), (40, 61), (700, 811)])
def test_mcnemar_is_the_exact_sign_test(b: int, c: int) -> None:
    wanted = scipy.stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert stats.mcnemar(b, c) == pytest.approx(wanted, rel=1e-9)
    assert stats.mcnemar(b, c) == stats.mcnemar(c, b)
    with pytest.raises(ValueError, match="no counts"):
        stats.mcnemar(-1, 3)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 2, 12, 0), 0.0569, 0.3404),  # Newcombe (1998), table III
        ((1, 7, 1, 12), -0.5069, -0.0256),  # Bentur et al. (2009), in Fagerland, Lydersen & Laake (2014)
        ((59, 16, 6, 80), -0.1186, -0.0046),  # Cavo et al. (2012), ibid.
        ((1, 0, 0, 1), -0.5734, 0.5734),
    ],
)
def test_newcombe_interval_is_as_published(table: tuple[int, int, int, int], low: float, high: float) -> None:
    found = stats.newcombe_interval(*table)
    assert found.value == pytest.approx((table[2] - table[1]) / sum(table))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_newcombe_interval_says_something_where_nothing_differs() -> None:
    found = stats.newcombe_interval(50, 0, 0, 0)
    one = stats.wilson_interval(50, 50)
    assert found.low is not None
    assert one.low is not None
    assert (found.low, found.high) == pytest.approx((one.low - 1, 1 - one.low))
    with pytest.raises(ValueError, match="no proportion"):
        stats.newcombe_interval(0, 0, 0, 0)
    with pytest.raises(ValueError, match="no counts"):
        stats.newcombe_interval(2, -1, 0, 0)


@pytest.mark.parametrize("n", [12, 60])
def test_bootstrap_is_scipys_at_the_expanded_level(n: int) -> None:
    draw = np.random.default_rng(n)
    a = draw.uniform(0, 0.6, n)
    b = a + draw.exponential(0.1, n)
    found = stats.paired_bootstrap(a.tolist(), b.tolist())
    level = 1 - 2 * scipy.stats.norm.cdf(-math.sqrt(n / (n - 1)) * scipy.stats.t.ppf(0.975, n - 1))
    wanted = scipy.stats.bootstrap(
        ((b - a),), np.mean, n_resamples=10_000, method="percentile", confidence_level=level, rng=np.random.default_rng(1)
    ).confidence_interval
    width = wanted.high - wanted.low
    assert found.difference == pytest.approx((b - a).mean())
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.04 * width)


def test_bootstrap_is_about_the_t_test_where_that_is_right() -> None:
    """Normal differences, also of few questions: the widening is what makes up for the plain percentile's narrowness."""
    draw = np.random.default_rng(3)
    for n in (10, 200):
        differences = scipy.stats.norm.ppf((np.arange(n) + 0.5) / n) * 0.1 + 0.11 / math.sqrt(n)
        base = draw.uniform(0, 1, n)
        found, wanted = (t(base.tolist(), (base + differences).tolist()) for t in (stats.paired_bootstrap, stats.paired_test))
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.005)
        assert found.p == pytest.approx(wanted.p, rel=0.12)


def test_bootstrap_keeps_its_level() -> None:
    """Of 400 pairs of 8 graded scores without any difference, about 5 % are called different."""
    draw = random.Random(5)
    called = 0
    for _ in range(400):
        pairs = [sorted((draw.random(), draw.random()), key=lambda _: draw.random()) for _ in range(8)]
        p = stats.paired_bootstrap([a for a, _ in pairs], [b for _, b in pairs], resamples=400).p
        called += p is not None and p < 0.05
    assert 0.02 <= called / 400 <= 0.08


def test_bootstrap_at_its_edges() -> None:
    same = stats.paired_bootstrap([0.25, 0.5, 1.0], [0.25, 0.5, 1.0])
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    one = stats.paired_bootstrap([0.0], [0.5])
    assert (one.difference, one.low, one.high, one.p, one.n) == (0.5, None, None, None, 1)
    all_alike = stats.paired_bootstrap([0.0] * 30, [0.5] * 30)
    assert (all_alike.low, all_alike.high) == (0.5, 0.5)
    assert all_alike.p is not None
    assert 0.0 < all_alike.p < 1e-3
    with pytest.raises(ValueError, match="same samples"):
        stats.paired_bootstrap([0.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="at least one"):
        stats.paired_bootstrap([], [])


def test_bootstrap_is_the_same_each_time_and_however_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = ([DRAW.random() for _ in range(40)] for _ in range(2))
    found = stats.paired_bootstrap(a, b)
    bootstrap._bootstrap.cache_clear()
    monkeypatch.setattr(bootstrap, "_KEPT_COUNTS", 0)
    assert stats.paired_bootstrap(a, b) == found
    assert stats.paired_bootstrap(a, b, seed=1) != found


# Accuracies


def test_right_or_wrong_answers() -> None:
    base, own = [1, 1, 1, 1, 1, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0, 1, 0, 1, 1]
    found = accuracies({"baseline": keyed(base), "m": keyed(own)}, "baseline")
    wilson = scipy.stats.binomtest(4, 10).proportion_ci(method="wilson")
    of = found["m"]
    assert (of.value, of.low, of.high, of.n, of.interval) == (0.4, pytest.approx(wilson.low), pytest.approx(wilson.high), 10, WILSON)
    assert of.difference == pytest.approx(-0.4)
    assert (of.p, of.test, of.paired) == (pytest.approx(scipy.stats.binomtest(1, 6).pvalue), MCNEMAR, 10)
    assert (of.difference_low, of.difference_high) == (stats.newcombe_interval(3, 5, 1, 1).low, stats.newcombe_interval(3, 5, 1, 1).high)
    assert (found["baseline"].difference, found["baseline"].p, found["baseline"].test) == (None, None, "")


def test_graded_answers() -> None:
    base = [DRAW.random() for _ in range(25)]
    own = [max(0.0, v - DRAW.random() / 5) for v in base]
    of = accuracies({"baseline": keyed(base), "m": keyed(own)}, "baseline")["m"]
    wanted, test = stats.mean_interval(own), stats.paired_bootstrap(base, own)
    assert (of.low, of.high, of.interval) == (wanted.low, wanted.high, STUDENT)
    assert (of.difference, of.difference_low, of.p, of.test) == (test.difference, test.low, test.p, BOOTSTRAP)
    assert of.is_shown_to_differ


def test_graded_intervals_stay_in_range_and_are_never_empty() -> None:
    found = accuracies({"high": keyed([1.0, 1.0, 0.9]), "alike": keyed([0.5, 0.5, 0.5]), "one": keyed([0.25])}, None)
    assert found["high"].high == 1.0
    for label in ("alike", "one"):
        assert found[label].interval == WILSON
        assert found[label].low < found[label].value < found[label].high


def test_a_graded_baseline_makes_the_pair_graded() -> None:
    """A method that scores nothing at all where the baseline's F1 are fractions is not tested as right or wrong."""
    of = accuracies({"baseline": keyed([0.5, 0.7, 0.4, 0.6]), "m": keyed([0, 0, 0, 0])}, "baseline")["m"]
    assert of.test == BOOTSTRAP
    assert of.high > 0.0


def test_graded_scores_may_be_zeros_and_ones() -> None:
    scores = {"baseline": keyed([1, 1, 0, 1]), "m": keyed([1, 0, 0, 1])}
    assert accuracies(scores, "baseline")["m"].test == MCNEMAR
    found = accuracies(scores, "baseline", graded=True)
    assert (found["m"].test, found["m"].interval) == (BOOTSTRAP, STUDENT)
    assert measured("f1", "", scores["m"], graded=True).high == found["m"].high


def test_only_shared_questions_are_compared() -> None:
    base, own = {"a": 1.0, "b": 0.0, "c": 1.0}, {"b": 1.0, "c": 1.0, "d": 0.0, "e": 0.0}
    of = accuracies({"baseline": base, "m": own}, "baseline")["m"]
    assert (of.value, of.n, of.paired, of.difference) == (0.5, 4, 2, 0.5)
    apart = accuracies({"baseline": base, "m": {"z": 1.0}}, "baseline")["m"]
    assert (apart.difference, apart.p, apart.p_adjusted, apart.test, apart.paired) == (None, None, None, "", 0)


def test_no_baseline_and_no_scores() -> None:
    assert accuracies({}, "baseline") == {}
    found = accuracies({"m": keyed([1, 0]), "none": {}}, "baseline")
    assert list(found) == ["m"]
    assert found["m"].difference is None
    assert accuracies({"baseline": keyed([1.0])}, None)["baseline"].p is None


@pytest.mark.parametrize("score", [1.5, -0.1, math.nan])
def test_scores_out_of_range_are_refused(score: float) -> None:
    with pytest.raises(ValueError, match=r"the score of m on q7 .* must be in \[0, 1\]"):
        accuracies({"m": {"q7": score}}, None)


def test_a_methods_figures_hang_on_the_baseline_alone() -> None:
    scores = {"baseline": binary(60, 0.8, 1), "a": binary(60, 0.5, 2), "b": binary(60, 0.7, 3)}
    alone = accuracies({k: scores[k] for k in ("baseline", "a")}, "baseline")["a"]
    among = accuracies(scores, "baseline")["a"]
    assert (alone.value, alone.difference, alone.p) == (among.value, among.difference, among.p)


def test_holm_covers_one_group_or_all() -> None:
    groups = {
        name: accuracies({"baseline": binary(80, 0.8, seed), **{f"m{i}": binary(80, 0.6, seed + i) for i in (1, 2)}}, "baseline")
        for name, seed in (("x", 10), ("y", 20), ("z", 30))
    }
    ps = [groups["x"][m].p or 0.0 for m in ("m1", "m2")]
    assert [groups["x"][m].p_adjusted for m in ("m1", "m2")] == stats.holm(ps)
    every = [groups[g][m].p or 0.0 for g in groups for m in ("m1", "m2")]
    found = corrected(groups)
    assert [found[g][m].p_adjusted for g in groups for m in ("m1", "m2")] == stats.holm(every)
    assert found["x"]["baseline"].p_adjusted is None


def test_measured_carries_a_sample_a_question() -> None:
    scores = binary(20, 0.5, 4)
    found = measured("accuracy", "task=piqa", scores)
    own = accuracies({"m": scores}, None)["m"]
    assert (found.value, found.low, found.high, found.samples) == (own.value, own.low, own.high, scores)
    assert (found.metric, found.point, found.evidence, found.better, found.unit) == ("accuracy", "task=piqa", "paired", "higher", "1")
    with pytest.raises(ValueError, match="no proportion"):
        measured("accuracy", "", {})


def test_table_shows_intervals_differences_and_marks() -> None:
    right, wrong = keyed([1] * 20), keyed([0] * 20)
    groups = {
        "piqa": accuracies({"baseline": right, "good": right, "bad": wrong}, "baseline"),
        "f1": accuracies({"baseline": keyed([0.5, 0.6, 0.7]), "good": keyed([0.5, 0.6, 0.7])}, "baseline"),
    }
    found = table("tasks", "Tasks", groups, ["baseline", "bad", "good", "failed"])
    assert found.headings == ["method", "piqa %", "Δ piqa", "f1 %", "Δ f1"]
    assert [row[0] for row in found.rows] == ["baseline", "bad", "good"]
    assert found.rows[0][1:3] == ["100.0 ± 8.1", "–"]
    assert found.rows[1][1] == "0.0 ± 8.1"
    assert found.rows[1][2].startswith("-100.0 [-100.0, -")
    assert found.rows[1][2].endswith("]*")
    assert found.rows[1][3:] == ["–", "–"]
    assert found.rows[2][2].startswith("+0.0 [-")
    assert re.fullmatch(r"\+0\.0 \[-\d\d\.\d, \+\d\d\.\d\]", found.rows[2][4]), "three equal questions say little"


def test_notes_name_sizes_intervals_tests_and_the_correction() -> None:
    groups = {
        "piqa": accuracies({"baseline": binary(9, 0.5, 1), "m": binary(8, 0.5, 2)}, "baseline"),
        "f1": accuracies({"baseline": keyed([0.5, 0.6, 0.8]), "m": keyed([0.4, 0.6, 0.7])}, "baseline"),
    }
    text = "\n".join(notes(groups))
    for said in ("piqa 8–9, f1 3", "Wilson 1927; Student's t", "Newcombe 1998, method 10; expanded percentile", "exact McNemar test",
                 "paired bootstrap test", "Holm (1979) over the 2 tests of this table"):  # fmt: skip
        assert said in text
    alone = {"": accuracies({"baseline": binary(5, 0.5, 1)}, "baseline")}
    assert len(notes(alone)) == 2
    assert notes(alone)[0] == "questions: 5"
    assert notes(alone, what="prompts")[0] == "prompts: 5"
    assert table("t", "", alone, ["baseline"]).headings == ["method", "%"]
    assert notes({}) == []


def test_marks_follow_the_correction_over_the_whole_table() -> None:
    """p = 2/2⁷ shows a difference alone, and none among many tests."""
    own = {"baseline": keyed([1] * 12), "m": keyed([1] * 5 + [0] * 7)}
    one = accuracies(own, "baseline")
    assert table("t", "", {"a": one}, ["m"]).rows[0][2].endswith("]*")
    many = {name: one if name == "a" else accuracies({"baseline": keyed([1, 0]), "m": keyed([1, 0])}, "baseline") for name in "abcd"}
    assert table("t", "", many, ["m"]).rows[0][2].endswith("]")


def test_nothing_heavy_is_loaded_for_right_or_wrong_answers() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from kvbench.metrics import accuracy as a;"
        "a.table('t', 't', {'': a.accuracies({'baseline': {'q': 1.0}, 'm': {'q': 0.0}}, 'baseline')}, ['m']);"
        "print({'numpy', 'scipy', 'torch'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
    assert accuracy.ALPHA == 0.05


@pytest.mark.parametrize(("p", "shown"), [(None, False), (0.049, True), (0.05, False)])
def test_a_difference_is_shown_below_five_percent_corrected(p: float | None, shown: bool) -> None:
    assert accuracy.Accuracy(0.5, 0.4, 0.6, 40, p=0.001, p_adjusted=p).is_shown_to_differ == shown
