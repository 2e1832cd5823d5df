"""Whether one measured figure is shown to be better than another on the same samples, and which rows may be called best."""

from __future__ import annotations

from collections.abc import Sequence

from kvbench.metrics.measured import NOTHING_YET, Measured
from kvbench.metrics.paired import ALPHA, Kind, kind_of, paired, shared
from kvbench.metrics.rounding import is_within
from kvbench.metrics.row import Row
from kvbench.metrics.stats import mann_whitney, median
from kvbench.spec import BASELINE, CONTROLS, RANDOM

SAVING = 0.5
"""A row that is called best saves at least this share of what ``random`` saves."""


def kind(a: Measured, b: Measured) -> Kind:
    """How the samples of both are to be judged."""
    return "loss" if a.scale == "log" else kind_of(a.scoring or b.scoring, a.better, a.samples.values(), b.samples.values())


def is_better(a: Measured, b: Measured) -> bool:
    """Whether ``a`` is shown to be better than ``b``: by value where figures are exact, else by the test of its evidence.

    Paired figures need a shared sample to be tested by, and a difference beyond what rounding does to either; speeds that were timed
    on different read paths form no ratio.
    """
    if a.better == "neither" or a.read_path != b.read_path:
        return False
    if a.evidence == "paired":
        before, after = shared(b.samples, a.samples)
        found = paired(before, after, kind(a, b)) if before else None
        shown, gain = found is not None and found.is_shown, found.difference if found else 0.0
        return shown and not is_within(gain, a.rounding, b.rounding) and (gain > 0) == (a.better == "higher")
    if a.evidence == "noisy":
        ours, theirs = list(a.samples.values()), list(b.samples.values())
        shown = bool(ours and theirs) and mann_whitney(theirs, ours).p < ALPHA
        return shown and (median(ours) > median(theirs)) == (a.better == "higher")
    return a.value is not None and b.value is not None and a.value != b.value and (a.value > b.value) == (a.better == "higher")


def is_unmasked(row: Row) -> bool:
    """Whether the audit found that the method saves less than it says; the reference saves nothing by definition."""
    return row.audit not in (None, "real", NOTHING_YET) and row.label != BASELINE


def is_control(label: str) -> bool:
    """Whether the row is there to be compared with, at whatever budget."""
    return label.partition("@")[0] in CONTROLS


def is_ranked(row: Row) -> bool:
    """Whether the row may be ranked: neither failed, nor a control, nor unmasked by the audit, nor yet to compress anything."""
    return row.status != "failed" and not is_control(row.label) and not is_unmasked(row) and row.audit != NOTHING_YET


def contenders(rows: Sequence[Row]) -> list[Row]:
    """The ranked rows that may be called best in a column: those that clear the bar which ``random`` sets.

    Every column has a row that is best in it by being useless in another: one that stores next to nothing and has forgotten the text,
    one that has lost nothing because it stores all. A contender loses less (KL) than eviction without thought, and saves at least
    :data:`SAVING` of what that saves. What is not known, or a table without ``random``, excludes nobody.
    """
    bar = min((r for r in rows if r.label.partition("@")[0] == RANDOM and r.factor), key=lambda r: r.factor or 0.0, default=None)
    return [row for row in rows if is_ranked(row) and (bar is None or (_loses_less(row, bar) and _saves(row, bar)))]


def _loses_less(row: Row, bar: Row) -> bool:
    return row.kl is None or bar.kl is None or row.kl < bar.kl


def _saves(row: Row, bar: Row) -> bool:
    return not row.factor or 1 - 1 / row.factor >= SAVING * (1 - 1 / (bar.factor or 1.0))
