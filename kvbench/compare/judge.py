"""What may be said of one pair of figures: the change, its interval, and whether any difference is shown.

=========  ============================  =====================================  ============================================
evidence   shown to differ by            change                                 95 % interval
=========  ============================  =====================================  ============================================
exact      the values                    B - A                                  none: the values are the truth
paired     the test of its kind of       mean difference over shared samples;   of the same test
           sample, p < 0.05              on a log scale the ratio e^difference
noisy      Mann-Whitney U, p < 0.05      change of medians                      shifts that the same test does not reject
=========  ============================  =====================================  ============================================

Kinds of samples and their tests are those of a run's own tables (:mod:`kvbench.metrics.paired`). A paired difference that is
smaller than what rounding alone does to either figure is not shown, whatever its p.

Relative changes take A's own value as the unit and do not widen the interval for A's error; on a log scale (perplexity)
and for positive repeats (times) the ratio itself is what is estimated, and nothing is neglected.

p is given as it is, for one test alone. A comparison holds many: ``holm`` is written beside it, and the text says how
many differences chance alone would show. The verdict goes by the raw p: Holm over a hundred tests would leave
five repeats of a timing unable to show anything, and a regression missed costs more here than one looked at twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kvbench.compare.align import Pair
from kvbench.metrics.apart import kind
from kvbench.metrics.measured import Measured
from kvbench.metrics.paired import ALPHA, EQUAL, MCNEMAR, paired, shared
from kvbench.metrics.rounding import is_within
from kvbench.metrics.stats import holm, mann_whitney, median, shift_interval, smallest_p

RANKS = "Mann-Whitney"
_ROUNDED = "smaller than what rounding does"
_LARGEST_LOG = 700.0
"""e to more than this has no float; a perplexity that large has long stopped meaning anything."""
Verdict = Literal["~", "+", "-", "!", "x"]
WORDS: dict[Verdict, str] = {"~": "", "+": "better", "-": "worse", "!": "differs", "x": "not comparable"}


@dataclass(frozen=True)
class Change:
    """B against A, in the metric's unit and in % of A; ``None`` where it cannot be said."""

    absolute: float | None = None
    low: float | None = None
    high: float | None = None
    percent: float | None = None
    percent_low: float | None = None
    percent_high: float | None = None


@dataclass(frozen=True)
class Finding:
    """One line of a comparison.

    Attributes:
        a, b: The figures compared: as reported, means over the shared samples, or medians of repeats.
        p: Two-sided, of this test alone; ``None`` for exact figures, equal samples, and where there are too few.
        holm: p adjusted over all tests of the comparison.
        verdict: ``~`` nothing shown to differ, ``+`` better, ``-`` worse, ``!`` differs (no direction is better), ``x`` not comparable.
        note: Why, or what to mind.
        audit_a, audit_b: What the audit found the method to be on each side (``real``, ``masked`` …).
        test: What gave p. rounding: The larger of what rounding alone does to A and to B, on the scale of their samples.
    """

    method: str
    metric: str
    point: str
    unit: str
    evidence: str
    better: str
    a: float | None
    b: float | None
    change: Change
    p: float | None
    n_a: int
    n_b: int
    verdict: Verdict
    note: str
    audit_a: str | None = None
    audit_b: str | None = None
    holm: float | None = None
    test: str = ""
    rounding: float | None = None


def judge(pairs: Sequence[Pair]) -> list[Finding]:
    """A finding for each pair, with p adjusted by Holm over all tests made."""
    findings = [_judge(pair) for pair in pairs]
    tested = [place for place, found in enumerate(findings) if found.p is not None]
    for place, adjusted in zip(tested, holm([findings[place].p or 0.0 for place in tested]), strict=True):
        findings[place] = replace(findings[place], holm=adjusted)
    return findings


def _judge(pair: Pair) -> Finding:
    if pair.refusal is not None or pair.a is None or pair.b is None:
        value_a, value_b = (one.value if one else None for one in (pair.a, pair.b))
        return _finding(pair, value_a, value_b, Change(), None, (0, 0), False, refused=True)
    if pair.kind.evidence == "exact":
        return _exact(pair, pair.a.value or 0.0, pair.b.value or 0.0)
    if pair.kind.evidence == "paired":
        return _paired(pair, pair.a, pair.b)
    return _noisy(pair, pair.a, pair.b)


def _exact(pair: Pair, a: float, b: float) -> Finding:
    differs = not math.isclose(a, b, rel_tol=EQUAL)
    return _finding(pair, a, b, _linear(a, b - a if differs else 0.0), None, (1, 1), differs)


def _paired(pair: Pair, a: Measured, b: Measured) -> Finding:
    left, right = shared(a.samples, b.samples)
    counts = (len(left), len(left))
    value_a, value_b = a.value or 0.0, b.value or 0.0
    if not left:
        note = "no shared samples: not tested" if a.samples and b.samples else "no per-sample scores: not tested"
        return _finding(pair, value_a, value_b, _linear(value_a, value_b - value_a), None, counts, False, note)
    note = _samples_note(a, b, left, right)
    value_a, value_b = _mean(left, a.scale), _mean(right, b.scale)
    test = paired(left, right, kind(a, b))
    change = (_ratio if a.scale == "log" else _linear)(value_a, test.difference, test.low, test.high)
    rounded = is_within(test.difference, a.rounding, b.rounding)
    note = "one sample: not tested" if test.p is None else _ROUNDED if test.is_shown and rounded else note
    note = " · ".join(filter(None, (_flips(left, right, a.better) if test.test == MCNEMAR else "", note)))
    return _finding(pair, value_a, value_b, change, test.p, counts, test.is_shown and not rounded, note, test=test.test)


def _flips(left: Sequence[float], right: Sequence[float], better: str) -> str:
    """How many answers became wrong, and right."""
    fell, rose = (sum(b - a == by for a, b in zip(left, right, strict=True)) for by in (-1.0, 1.0))
    lost, won = (rose, fell) if better == "lower" else (fell, rose)
    return f"{lost} lost, {won} won" if lost or won else ""


def _samples_note(a: Measured, b: Measured, left: Sequence[float], right: Sequence[float]) -> str:
    """Where the figures compared, means over shared samples, are not the ones that the files report."""
    if len(left) < max(len(a.samples), len(b.samples)):
        return f"{len(left)} shared samples of {len(a.samples)} and {len(b.samples)}"
    pooled = any(not math.isclose(_mean(v, one.scale), one.value or 0.0, rel_tol=1e-6, abs_tol=1e-12) for one, v in ((a, left), (b, right)))
    return "means over samples, not pooled" if pooled else ""


def _noisy(pair: Pair, a: Measured, b: Measured) -> Finding:
    left, right = list(a.samples.values()), list(b.samples.values())
    counts = (len(left), len(right))
    if not left or not right:
        value_a, value_b = a.value or 0.0, b.value or 0.0
        return _finding(pair, value_a, value_b, _linear(value_a, value_b - value_a), None, counts, False, "no repeats: not tested")
    value_a, value_b = median(left), median(right)
    if left == right:
        return _finding(pair, value_a, value_b, _linear(value_a, 0.0, 0.0, 0.0), None, counts, False)
    test = mann_whitney(left, right)
    note = "" if smallest_p(*counts) < ALPHA else f"{counts[0]} and {counts[1]} repeats cannot show a difference"
    change = _between_medians(value_a, value_b, left, right)
    return _finding(pair, value_a, value_b, change, test.p, counts, test.p < ALPHA, note, test=RANKS)


def _between_medians(value_a: float, value_b: float, left: Sequence[float], right: Sequence[float]) -> Change:
    change = _linear(value_a, value_b - value_a, *(shift_interval(left, right) or (None, None)))
    if min(*left, *right) <= 0.0:
        return change
    ratios = shift_interval([math.log(v) for v in left], [math.log(v) for v in right])
    if ratios is None:
        return change
    return replace(change, percent_low=_percent_of_log(ratios[0]), percent_high=_percent_of_log(ratios[1]))


def _linear(a: float, difference: float, low: float | None = None, high: float | None = None) -> Change:
    """Relative figures are parts of |A|; there are none where A is 0."""

    def percent(value: float | None) -> float | None:
        return None if value is None or a == 0.0 else 100.0 * value / abs(a)

    return Change(difference, low, high, percent(difference), percent(low), percent(high))


def _ratio(a: float, difference: float, low: float | None = None, high: float | None = None) -> Change:
    """From a difference of logarithms: B/A = e^difference."""
    percents = [None if value is None else _percent_of_log(value) for value in (difference, low, high)]
    absolute = [None if value is None else abs(a) * value / 100.0 for value in percents]
    return Change(*absolute, *percents)


def _percent_of_log(difference: float) -> float:
    return 100.0 * math.expm1(min(difference, _LARGEST_LOG))


def _mean(samples: Sequence[float], scale: str) -> float:
    mean = math.fsum(samples) / len(samples)
    return math.exp(min(mean, _LARGEST_LOG)) if scale == "log" else mean


def _finding(
    pair: Pair, a: float | None, b: float | None, change: Change, p: float | None, counts: tuple[int, int], differs: bool,
    note: str = "", *, refused: bool = False, test: str = "",
) -> Finding:  # fmt: skip
    kind = pair.kind
    verdict: Verdict = "x" if refused else _verdict(kind, change) if differs else "~"
    return Finding(
        pair.method, pair.metric, pair.point, kind.unit, kind.evidence, kind.better, a, b, change, p, *counts,
        verdict, pair.refusal or note or pair.note, pair.audit_a, pair.audit_b, test=test, rounding=_rounding(pair),
    )  # fmt: skip


def _rounding(pair: Pair) -> float | None:
    return max((one.rounding for one in (pair.a, pair.b) if one is not None and one.rounding is not None), default=None)


def _verdict(kind: Measured, change: Change) -> Verdict:
    """Which way a difference that is shown goes: by the value, or for medians by the side of 0 on which the interval lies."""
    if kind.better == "neither":
        return "!"
    bound = change.absolute or 0.0
    if kind.evidence == "noisy" and change.low is not None and change.high is not None:
        bound = change.low + change.high
    return "+" if (bound > 0.0) == (kind.better == "higher") else "-"
