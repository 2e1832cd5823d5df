"""What evaluators with scored questions share: accuracies with intervals, paired differences, one correction, one table.

A score is in [0, 1]: right or wrong (0 and 1), or graded (an F1). The four figures of a method and where they come from:

==================  ============================================  ====================================================
figure              right or wrong                                graded
==================  ============================================  ====================================================
interval            Wilson's score interval                       Student's t, within [0, 1]; Wilson's where all are equal
difference          the mean difference on the questions that both the method and the baseline have
its interval, p     of :mod:`kvbench.metrics.paired`
==================  ============================================  ====================================================

Holm's correction covers all tests that one table shows. A test and an interval may differ at the border: the interval
is of one difference alone and is not corrected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeVar

from kvbench.figures import Table
from kvbench.formats import NONE, fixed, signed, with_interval
from kvbench.metrics.measured import Measured
from kvbench.metrics.paired import ALPHA, BOOTSTRAP, MCNEMAR, SIGN, Scoring, kind_of, paired, shared
from kvbench.metrics.stats import RESAMPLES, Interval, holm, mean_interval, wilson_interval

MARK = "*"
"""Behind a difference that is shown: its corrected p is below ``ALPHA``."""
WILSON, STUDENT = "Wilson", "t"
Key = TypeVar("Key")
Scores = Mapping[str, float]
"""One method's scores: question → score in [0, 1]."""


@dataclass(frozen=True)
class Accuracy:
    """One method's mean score over its questions, and how it differs from the baseline's; ``None`` is "cannot be said".

    Attributes:
        value: Mean score, 0 to 1. low, high: 95 % interval. n: Questions.
        difference: Method − baseline over the questions that both have; ``None`` for the baseline itself.
        difference_low, difference_high: Its paired 95 % interval.
        p: Two-sided, of this test alone. p_adjusted: By Holm over all tests that were corrected together.
        test: ``McNemar``, ``paired bootstrap`` or ``sign``; empty where there is nothing to test.
        paired: Questions that both have. interval: What ``low`` and ``high`` are, ``Wilson`` or ``t``.
    """

    value: float
    low: float
    high: float
    n: int
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    test: str = ""
    paired: int = 0
    interval: str = WILSON

    @property
    def is_shown_to_differ(self) -> bool:
        """Whether the corrected test shows a difference from the baseline."""
        return self.p_adjusted is not None and self.p_adjusted < ALPHA


def accuracies(scores: Mapping[str, Scores], baseline: str | None, *, graded: bool = False) -> dict[str, Accuracy]:
    """Every label's accuracy, corrected over these labels; those without any score are left out.

    Args:
        scores: label → question → score in [0, 1].
        baseline: The label that all are compared with; without it there are no differences.
        graded: Scores are graded even where all of them happen to be 0 or 1; without it their values tell.

    Raises:
        ValueError: a score outside [0, 1].
    """
    reference = scores.get(baseline, {}) if baseline is not None else {}
    found = {label: _accuracy(label, of, {} if label == baseline else reference, graded) for label, of in scores.items() if of}
    return corrected({"": found})[""]


def corrected(groups: Mapping[str, Mapping[str, Accuracy]]) -> dict[str, dict[str, Accuracy]]:
    """The same accuracies (group → label → accuracy) with ``p_adjusted`` by Holm over all tests in all groups."""
    tests = {(group, label): of.p for group, labels in groups.items() for label, of in labels.items() if of.p is not None}
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    return {
        group: {label: replace(of, p_adjusted=adjusted.get((group, label))) for label, of in labels.items()}
        for group, labels in groups.items()
    }


def measured(metric: str, point: str, scores: Scores, *, graded: bool = False) -> Measured:
    """One method's mean score for ``kvbench compare``: paired evidence, a sample per question.

    Raises:
        ValueError: no scores, or one outside [0, 1].
    """
    found = _accuracy(metric, scores, {}, graded)
    scoring: Scoring = "graded" if graded else "answers"
    return Measured(metric, found.value, "1", "paired", "higher", point, found.low, found.high, dict(scores), scoring=scoring)


def table(name: str, title: str, groups: Mapping[str, Mapping[str, Accuracy]], order: Sequence[str], *, what: str = "questions") -> Table:
    """A row a method, and for each group its accuracy in % and, where any has one, its difference from the baseline in percentage points.

    Args:
        groups: column (a task, a length; ``""`` if there is only one) → label → accuracy. Tests are corrected here over all of them.
        order: Row labels; those without any accuracy are left out. what: What is scored, for the notes.
    """
    found = corrected(groups)
    compared = [group for group, labels in found.items() if any(of.difference is not None for of in labels.values())]
    headings = [text for group in found for text in (f"{group} %".strip(), *([f"Δ {group}".strip()] if group in compared else []))]
    rows = [
        [label, *(cell for group, of in found.items() for cell in cells(of.get(label))[: 2 if group in compared else 1])]
        for label in order
        if any(label in of for of in found.values())
    ]
    return Table(name, title, ["method", *headings], rows, notes=notes(found, what=what))


def means(scores: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    """The mean score of each cell of a grid (or of a length, a depth), from any number of (cell, score)."""
    found: dict[Key, list[float]] = {}
    for cell, score in scores:
        found.setdefault(cell, []).append(score)
    return {cell: fmean(of) for cell, of in found.items()}


def cells(found: Accuracy | None) -> tuple[str, str]:
    """``61.0 ± 4.2`` in %, and ``-3.0 [-8.1, +2.0]*`` in percentage points."""
    if found is None:
        return NONE, NONE
    value = f"{fixed(100 * found.value, 1)} ± {fixed(50 * (found.high - found.low), 1)}"
    if found.difference is None:
        return value, NONE
    low, high = (None if end is None else 100 * end for end in (found.difference_low, found.difference_high))
    change = with_interval(signed(100 * found.difference, 1), low, high, 1)
    return value, change + (MARK if found.is_shown_to_differ else "")


def notes(groups: Mapping[str, Mapping[str, Accuracy]], *, what: str = "questions") -> list[str]:
    """How many questions (or ``what`` was scored), which intervals and tests, and what was corrected over how many of them."""
    every = [of for labels in groups.values() for of in labels.values()]
    tests = [of for of in every if of.p is not None]
    if not every:
        return []
    said = [f"{what}: {_counts(groups)}", f"±: half of the 95 % interval ({_named(_INTERVALS, (of.interval for of in every))})"]
    if any(of.difference is not None for of in every):
        kinds = _named(_DIFFERENCES, (of.test for of in every))
        said.append(f"Δ: method − baseline in percentage points, on the {what} that both have [paired 95 % interval: {kinds}]")
    if tests:
        names = _named(_TESTS, (of.test for of in tests))
        said.append(f"{MARK}: p < {ALPHA}, {names}, corrected by Holm (1979) over the {_tests(len(tests))} of this table")
    return said


_INTERVALS = {WILSON: "Wilson 1927", STUDENT: "Student's t"}
_DIFFERENCES = {
    MCNEMAR: "Newcombe 1998, method 10",
    BOOTSTRAP: f"expanded percentile bootstrap, Hesterberg 2015, {RESAMPLES:,} resamples",
    SIGN: "Wilson's bounds where all questions moved by the same",
}
_TESTS = {MCNEMAR: "exact McNemar test", BOOTSTRAP: "paired bootstrap test", SIGN: "sign test where all questions moved by the same"}


def _accuracy(label: str, scores: Scores, reference: Scores, graded: bool) -> Accuracy:
    for key, score in scores.items():
        if not 0.0 <= score <= 1.0:  # NaN too
            raise ValueError(f"the score of {label} on {key} is {score}; it must be in [0, 1]")
    before, after = shared(reference, scores)
    kind = kind_of("graded" if graded else "answers", "higher", scores.values(), reference.values())
    own, interval = _interval(list(scores.values()), kind == "answers")
    found = Accuracy(own.value, own.low or 0.0, 1.0 if own.high is None else own.high, own.n, interval=interval, paired=len(before))
    if not before:
        return found
    of = paired(before, after, kind)
    return replace(
        found, difference=of.difference, difference_low=of.low, difference_high=of.high, p=of.p, p_adjusted=of.p, test=of.test
    )  # fmt: skip


def _interval(scores: Sequence[float], is_binary: bool) -> tuple[Interval, str]:
    """A mean's interval. Wilson's holds for graded scores too, since a mean p within [0, 1] has a variance of at most p(1 − p)."""
    if is_binary or min(scores) == max(scores):
        return wilson_interval(min(math.fsum(scores), len(scores)), len(scores)), WILSON
    found = mean_interval(scores)
    low, high = found.low, found.high
    return replace(found, low=None if low is None else max(0.0, low), high=None if high is None else min(1.0, high)), STUDENT


def _counts(groups: Mapping[str, Mapping[str, Accuracy]]) -> str:
    """``piqa 50, gsm8k 8–10``: a range where methods have unequally many."""
    found = {group: sorted({of.n for of in labels.values()}) for group, labels in groups.items() if labels}
    said = {group: f"{few[0]}" if len(few) == 1 else f"{few[0]}–{few[-1]}" for group, few in found.items()}
    if len(said) > 1 and len(set(said.values())) == 1:
        return f"{next(iter(said.values()))} in each column"
    return ", ".join(f"{group} {count}".strip() for group, count in said.items())


def _named(names: Mapping[str, str], kinds: Iterable[str]) -> str:
    """What is written for the kinds that occur, in the mapping's order."""
    present = set(kinds)
    return "; ".join(text for kind, text in names.items() if kind in present)


def _tests(count: int) -> str:
    return f"{count:,} test" + ("" if count == 1 else "s")
