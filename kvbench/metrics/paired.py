"""How two rows are told apart on the samples that both have: the one home of paired tests.

==================  =================================  ==========================================  =========================
what is scored      p of no difference                 95 % interval of the mean difference        where nothing spreads
==================  =================================  ==========================================  =========================
right or wrong      McNemar's test, exact              Newcombe (1998), method 10                  the same two
graded, 0 to 1      expanded bootstrap of differences  of the same bootstrap                       sign test; Wilson's bounds
losses (NLL, KL)    Student's paired t test            Student's t of the differences              sign test; no interval
==================  =================================  ==========================================  =========================

Nothing spreads where all differences are the same: a standard deviation of 0 would make p = 0 and an interval without width from
two samples. The sign test asks less: that n samples all moved one way has p = 2^(1 − n) by chance. A graded difference d within
[-1, 1] has a variance of at most 1 − d², a share's (1 + d)/2 stretched twofold, so Wilson's bounds of that share hold; a loss has
no such bound, and no interval is given. What differs by no more than float64's own noise is equal.

A run's own tables and ``kvbench compare`` both ask here, so that the same scores give the same figures in both.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from kvbench.metrics.stats import PairedTest, mcnemar, newcombe_interval, paired_bootstrap, paired_test, wilson_interval

ALPHA = 0.05
"""A difference is shown where p lies below this."""
EQUAL = 1e-12
"""Differences this small, relative to the values, are float64's own."""
TINY = 1e-150
"""Differences this small have squares that float64 cannot hold, so that they would seem not to spread."""
MCNEMAR, BOOTSTRAP, STUDENT, SIGN = "McNemar", "paired bootstrap", "paired t", "sign"
Kind = Literal["answers", "graded", "loss"]
_USUAL: Mapping[Kind, str] = {"answers": MCNEMAR, "graded": BOOTSTRAP, "loss": STUDENT}
"""What tells each kind apart, where differences spread."""
Scoring = Literal["", "answers", "graded", "mean"]
"""What an evaluator says of its samples: ``answers`` are right or wrong, or graded if their values tell so; ``graded`` whatever
they are; ``mean`` is a figure over a text's tokens; empty leaves it to the values."""


@dataclass(frozen=True)
class Paired(PairedTest):
    """After (b) against before (a), uncorrected, with a 95 % interval; ``None`` is "cannot be said", and p is never 0.

    Attributes:
        test: What gave p; empty where nothing did.
    """

    test: str

    @property
    def is_shown(self) -> bool:
        """Whether this test, uncorrected, shows a difference."""
        return self.p is not None and self.p < ALPHA


def shared(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[list[float], list[float]]:
    """The values of both on the keys that both have, in one order whatever the mappings': resampling is not to hang on it."""
    keys = sorted((key for key in before if key in after), key=lambda key: (len(key), key))
    return [before[key] for key in keys], [after[key] for key in keys]


def kind_of(scoring: Scoring, better: str, *sides: Collection[float]) -> Kind:
    """How the samples of all ``sides`` are to be judged.

    Where nothing was declared, right and wrong are told by zeros and ones alone, both of them; other shares of 1 of which more is
    better count as graded.
    """
    if scoring == "mean" or not all(0.0 <= value <= 1.0 for side in sides for value in side):
        return "loss"
    if scoring == "graded":
        return "graded"
    values = set(chain.from_iterable(sides))
    if values <= {0.0, 1.0} and (scoring == "answers" or len(values) == 2):
        return "answers"
    return "graded" if scoring == "answers" or better == "higher" else "loss"


def paired(before: Sequence[float], after: Sequence[float], kind: Kind) -> Paired:
    """Test ``after`` against ``before``, sample by sample.

    Raises:
        ValueError: different lengths, or no samples.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"paired values need the same samples, at least one: {len(before)} against {len(after)}")
    if kind == "answers":
        return _answers(before, after)
    noise = max(TINY, EQUAL * max(map(abs, chain(before, after))))
    differences = [b - a for a, b in zip(before, after, strict=True)]
    if max(map(abs, differences)) <= noise:
        differences = [0.0] * len(differences)
    if len(differences) > 1 and max(differences) - min(differences) <= noise:
        return _alike(differences, kind)
    test = paired_bootstrap if kind == "graded" else paired_test
    found = test([0.0] * len(differences), differences)
    p = None if found.p is None else max(found.p, math.ulp(0.0))
    return Paired(found.difference, found.low, found.high, p, found.n, "" if p is None else _USUAL[kind])


def _answers(before: Sequence[float], after: Sequence[float]) -> Paired:
    """Right (1) or wrong (0) on both sides."""
    counts = [0, 0, 0, 0]  # right on both, before alone, after alone, neither
    for a, b in zip(before, after, strict=True):
        counts[(0 if b else 1) if a else (2 if b else 3)] += 1
    change = newcombe_interval(*counts)
    return Paired(change.value, change.low, change.high, max(mcnemar(counts[1], counts[2]), math.ulp(0.0)), change.n, MCNEMAR)


def _alike(differences: Sequence[float], kind: Kind) -> Paired:
    """All samples moved by the same."""
    n, moved = len(differences), math.fsum(differences) / len(differences)
    p, test = (math.ldexp(1.0, max(1 - n, -1000)), SIGN) if moved else (1.0, _USUAL[kind])
    if kind == "loss":
        return Paired(moved, None, None, p, n, test)
    share = wilson_interval(min(1.0, max(0.0, (1.0 + moved) / 2.0)) * n, n)
    low, high = (None if bound is None else 2.0 * bound - 1.0 for bound in (share.low, share.high))
    return Paired(moved, low, high, p, n, test)
