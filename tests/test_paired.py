"""One home of paired tests: two runs compared, and a run's own table, say the same of the same samples."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvbench.compare.align import Pair
from kvbench.compare.judge import Finding, judge
from kvbench.compare.thresholds import Threshold, check
from kvbench.evaluators.base import Measured
from kvbench.evaluators.perplexity import Perplexity
from kvbench.harness.tables import _measured, _paired
from kvbench.harness.task_scores import Metric
from kvbench.metrics.accuracy import accuracies, corrected, measured
from kvbench.metrics.paired import ALPHA, BOOTSTRAP, MCNEMAR, SIGN, STUDENT, kind_of, paired, shared
from tests.test_evaluators import record

pytestmark = pytest.mark.fast
Scores = dict[str, float]
BINARY = st.sampled_from([0.0, 1.0])
GRADED = st.one_of(BINARY, st.floats(0.0, 1.0))
LOSSES = st.floats(0.01, 12.0)


def pairs_of(value: st.SearchStrategy[float], most: int = 30) -> st.SearchStrategy[tuple[Scores, Scores]]:
    """The baseline's scores and the method's, on questions of which most are shared."""
    one = st.tuples(value, value, st.sampled_from(["both", "both", "both", "before", "after"]))
    return st.lists(one, min_size=1, max_size=most).map(
        lambda found: (
            {str(i): a for i, (a, _, on) in enumerate(found) if on != "after"},
            {str(i): b for i, (_, b, on) in enumerate(found) if on != "before"},
        )
    )


def compared(a: Measured, b: Measured) -> Finding:
    return judge([Pair("m", a.metric, a.point, a, b)])[0]


def close(found: float | None, wanted: float | None) -> bool:
    return found is wanted is None or (
        found is not None and wanted is not None and math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-12)
    )


def agree(f: Finding, difference: float | None, low: float | None, high: float | None, p: float | None) -> None:
    """The same figures, none of them false: no p of 0, no interval without width."""
    if f.n_a == 0:
        assert (f.verdict, f.p) == ("~", None)
        return
    assert close(f.change.absolute, difference)
    assert close(f.change.low, low)
    assert close(f.change.high, high)
    assert close(f.p, p)
    assert f.p is None or 0.0 < f.p <= 1.0
    assert f.change.low is None or f.change.high is None or f.change.low < f.change.high
    assert (f.verdict != "~") == (p is not None and p < ALPHA)


@pytest.mark.parametrize("graded", [False, True])
@given(scores=st.one_of(pairs_of(BINARY), pairs_of(GRADED, 12)))
def test_answers_compared_are_those_of_the_table(graded: bool, scores: tuple[Scores, Scores]) -> None:
    before, after = scores
    if not before or not after:
        return
    table = accuracies({"baseline": before, "m": after}, "baseline", graded=graded)["m"]
    f = compared(measured("acc", "", before, graded=graded), measured("acc", "", dict(reversed(after.items())), graded=graded))
    agree(f, table.difference, table.difference_low, table.difference_high, table.p)
    assert f.test == table.test or f.n_a == 0
    if table.p is not None and table.is_shown_to_differ:
        assert f.verdict == ("+" if (table.difference or 0.0) > 0 else "-")


@given(values=st.lists(st.tuples(LOSSES, st.one_of(LOSSES, st.just(0.0))), min_size=1, max_size=12))
def test_losses_compared_are_those_of_the_table(values: list[tuple[float, float]]) -> None:
    rows = {"baseline": [a for a, _ in values], "m": [a + b for a, b in values]}
    records = {label: {str(i): record(v, [0.1], 40) for i, v in enumerate(of)} for label, of in rows.items()}
    found = Perplexity().summarise(records, "baseline")
    before, after = (next(m for m in found[label].measured if m.metric == "perplexity") for label in rows)
    f, fields = compared(before, after), found["m"].fields
    assert close(f.change.percent, fields["ppl_delta_pct"])
    assert close(f.change.percent_low, fields["delta_low"])
    assert close(f.change.percent_high, fields["delta_high"])
    assert f.p is None or 0.0 < f.p <= 1.0
    assert f.p is not None or len(values) == 1
    assert f.change.low is None or f.change.low < (f.change.high or 0.0)


@pytest.mark.parametrize("lower", [False, True])
@example(scores=({"0": 0.0, "1": 0.0, "2": 0.0}, {"0": 0.0, "1": 0.0, "2": 7.5e-265}))  # its square is 0
@given(scores=pairs_of(st.one_of(BINARY, st.floats(0.0, 50.0)), 12))
def test_other_metrics_compared_are_those_of_their_table(lower: bool, scores: tuple[Scores, Scores]) -> None:
    base, own = (Metric("x,none", of, is_lower_better=lower) for of in scores)
    table = _paired(base, own)
    found: list[Measured] = [m for metric in (base, own) for m in _measured({"t": {"x,none": metric}}, "task", "")]
    if table is None or len(found) < 2:
        return
    agree(compared(*found), table.difference, table.low, table.high, table.p)


def test_holm_is_the_same_over_the_same_family() -> None:
    draws = {f"m{i}": {str(k): float((k * 7 + i) % (i + 2) > 0) for k in range(40)} for i in range(4)}
    base = {str(k): float(k % 3 > 0) for k in range(40)}
    table = corrected({"": accuracies({"baseline": base, **draws}, "baseline")})[""]
    findings = judge([Pair(label, "acc", "", measured("acc", "", base), measured("acc", "", of)) for label, of in draws.items()])
    assert [f.holm for f in findings] == [table[f.method].p_adjusted for f in findings]


@pytest.mark.parametrize(("total", "lost", "p"), [(2, 2, 0.5), (3, 3, 0.25), (5, 5, 0.0625), (50, 4, 0.125), (200, 5, 0.0625)])
def test_a_few_answers_lost_are_not_shown_and_fail_no_build(total: int, lost: int, p: float) -> None:
    before = {str(i): 1.0 for i in range(total)}
    after = {str(i): float(i >= lost) for i in range(total)}
    f = compared(measured("acc", "", before), measured("acc", "", after))
    assert (f.verdict, f.p, f.test) == ("~", pytest.approx(p), MCNEMAR)
    assert f.change.low is not None
    assert -1.0 <= f.change.low < (f.change.high or 0.0)
    assert f.note == f"{lost} lost, 0 won"
    assert check([Threshold.parse("acc:-1%")], [f], ["m"]).crossed == []


def test_errors_that_vanish_are_answers_won() -> None:
    wrong, right = (Measured("err", v, "1", "paired", "lower", samples={str(i): v for i in range(9)}) for v in (1.0, 0.0))
    f = compared(wrong, right)
    assert (f.verdict, f.test, f.note) == ("+", MCNEMAR, "0 lost, 9 won")


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_scores_that_are_all_equal_say_little_of_few_questions(value: float) -> None:
    f = compared(*[measured("acc", "", {str(i): value for i in range(3)})] * 2)
    assert (f.verdict, f.p, f.change.absolute) == ("~", 1.0, 0.0)
    assert (f.change.low or 0.0) < -0.2
    assert (f.change.high or 0.0) > 0.2


def test_losses_that_all_move_by_the_same_have_no_interval_and_the_sign_tests_p() -> None:
    few, many = (paired([3.0 + i for i in range(n)], [3.0 + i + 1e-3 for i in range(n)], "loss") for n in (4, 12))
    assert (few.p, few.low, few.high, few.test) == (2.0**-3, None, None, SIGN)
    assert not few.is_shown
    assert many.p == 2.0**-11
    assert many.is_shown
    assert paired([1.0] * 3000, [2.0] * 3000, "loss").p or pytest.fail("never 0")


def test_float64s_own_noise_is_no_difference() -> None:
    before = [3.1, 2.9, 3.3, 3.0, 2.7, 3.2]
    found = paired(before, [v * (1 + 2e-16) for v in before], "loss")
    assert (found.difference, found.p) == (0.0, 1.0)


@pytest.mark.parametrize("kind", ["answers", "graded", "loss"])
def test_one_sample_is_enough_for_no_test(kind: Any) -> None:
    found = paired([1.0], [0.0], kind)
    assert found.p in (None, 1.0)
    assert not found.is_shown
    with pytest.raises(ValueError, match="at least one"):
        paired([], [], kind)


def test_without_shared_samples_nothing_is_said() -> None:
    f = compared(measured("acc", "", {"a": 1.0}), measured("acc", "", {"b": 0.0}))
    assert (f.verdict, f.p, f.n_a) == ("~", None, 0)
    assert "no shared samples" in f.note
    assert all(math.isfinite(v) for v in (f.a, f.b, f.change.absolute) if v is not None)


def test_kinds_are_declared_or_told_by_the_values() -> None:
    assert kind_of("answers", "higher", [1.0, 1.0]) == "answers"
    assert kind_of("answers", "higher", [1.0, 0.5]) == "graded"
    assert kind_of("graded", "higher", [1.0, 0.0]) == "graded"
    assert kind_of("mean", "higher", [1.0, 0.0]) == "loss"
    assert kind_of("", "lower", [1.0, 0.0]) == "answers", "an error is an answer too"
    assert kind_of("", "lower", [0.0, 0.0]) == "loss", "a divergence that is nothing is no wrong answer"
    assert kind_of("", "higher", [0.2, 0.4]) == "graded"
    assert kind_of("answers", "higher", [0.0, 3.0]) == "loss"
    assert {paired([0.1, 0.5, 0.2], [0.3, 0.4, 0.9], kind).test for kind in ("graded", "loss")} == {BOOTSTRAP, STUDENT}


def test_shared_samples_come_in_one_order() -> None:
    before, after = {str(i): float(i) for i in range(12)}, {str(i): -float(i) for i in reversed(range(12))}
    assert shared(before, after) == ([float(i) for i in range(12)], [-float(i) for i in range(12)])
