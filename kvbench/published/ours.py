"""What a result has to set against a published figure: the same metric of the same row, in the published unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kvbench.compare.align import Pair
from kvbench.compare.judge import Change, judge
from kvbench.compare.sides import MethodResult
from kvbench.metrics.measured import Measured
from kvbench.published import Entry
from kvbench.published.counterparts import scored, suite

METRICS: Mapping[str, str] = {
    "perplexity": "perplexity",
    "kl": "kl_mean",
    "compression_factor": "compression_factor",
    "compression_ratio": "compression_factor",
    "throughput": "tokens_per_s",
    "peak_memory": "allocator_peak_bytes",
}
"""Published metric → kvbench's, where the name alone finds it; scores are found by their task."""
SCORES = ("accuracy", "score")
RATIOS = ("throughput", "peak_memory")
"""Given as "times the baseline's"."""


@dataclass(frozen=True)
class Ours:
    """One of our figures, in the published one's unit; ``None`` is "cannot be said".

    Attributes:
        value, low, high: The figure and its 95 % interval. baseline: The same figure without compression.
        change, change_low, change_high: Against the baseline with its 95 % interval, as :func:`change_of` counts.
        metric, point: Its name in the result, and where it was measured. mean_of: Tasks that it is the mean of.
        is_exact: Counted from bytes.
    """

    value: float
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    metric: str = ""
    point: str = ""
    mean_of: int = 1
    is_exact: bool = False


def in_points(entry: Entry) -> bool:
    """Whether changes are in percentage points, as those of scores; all others are in % of the baseline."""
    return entry.metric in SCORES


def change_of(entry: Entry) -> tuple[float, float] | None:
    """The published change against the source's own baseline, and how far printing may have rounded it."""
    value, step = float(entry.value), half_step(entry)
    if entry.unit == "×" and entry.metric != "compression_factor":
        return 100.0 * (value - 1.0), 100.0 * step
    if entry.baseline is None or not entry.baseline:
        return None
    base, both = float(entry.baseline), step + 0.5 * 10.0 ** int(entry.baseline.as_tuple().exponent)
    if in_points(entry):
        scale = 1.0 if entry.unit == "%" else 100.0
        return scale * (value - base), scale * both
    return 100.0 * (value / base - 1.0), 100.0 * both / base


def half_step(entry: Entry) -> float:
    """Half a unit of the last digit that is printed."""
    return 0.5 * 10.0 ** int(entry.value.as_tuple().exponent)


def find(entry: Entry, row: MethodResult, baseline: MethodResult | None) -> Ours | str:
    """Our figure for ``entry``, or why there is none."""
    if row.status == "failed":
        return f"the row failed: {row.error}" if row.error else "the row failed"
    if row.audit == "no-op":
        return "attention does not read what the method stores (no-op)"
    if entry.metric not in (*METRICS, *SCORES):
        return f"kvbench has no {entry.metric.replace('_', ' ')}"
    own = _measured(entry, row)
    if own is None or own.value is None:
        averaged = _averaged(entry, row, baseline)
        return averaged or f"this run did not measure {entry.task if entry.metric in SCORES else entry.metric.replace('_', ' ')}"
    reference = baseline.measured.get((own.metric, own.point)) if baseline is not None else None
    return _ratio(entry, own, reference) if entry.metric in RATIOS else _figure(entry, own, reference)


def _measured(entry: Entry, row: MethodResult) -> Measured | None:
    if entry.metric in SCORES:
        return scored(entry, row)
    found = [m for (name, _), m in row.measured.items() if name == METRICS[entry.metric]]
    return next((m for m in found if not m.point), found[0] if found else None)


def _averaged(entry: Entry, row: MethodResult, baseline: MethodResult | None) -> Ours | None:
    """The mean over a suite's tasks that the run asked, which may be fewer than the source's: without an interval."""
    own = suite(entry, row) if entry.metric in SCORES else []
    if not own:
        return None
    scale, count = 100.0 if entry.unit == "%" else 1.0, len(own)
    value = math.fsum(m.value or 0.0 for m in own) / count
    bases = [baseline.measured.get((m.metric, m.point)) for m in own] if baseline is not None else []
    known = [m.value for m in bases if m is not None and m.value is not None]
    base = math.fsum(known) / count if len(known) == count else None
    return Ours(
        scale * value, baseline=None if base is None else scale * base, change=None if base is None else 100.0 * (value - base),
        metric=own[0].metric, point=own[0].point, mean_of=count,
    )  # fmt: skip


def _change(own: Measured, reference: Measured | None) -> Change:
    if reference is None or reference.value is None:
        return Change()
    return judge([Pair("", own.metric, own.point, reference, own)])[0].change


def _ratio(entry: Entry, own: Measured, reference: Measured | None) -> Ours | str:
    """Ours over the baseline's, or for memory the baseline's over ours."""
    if reference is None or not reference.value or not own.value:
        return f"this run did not measure the baseline's {entry.metric.replace('_', ' ')}"
    if own.read_path != reference.read_path:
        return f"this run timed the method by another read path than the baseline ({own.read_path or 'reference'})"
    if entry.metric == "peak_memory":
        factor = reference.value / own.value
        return Ours(factor, baseline=1.0, change=100.0 * (factor - 1.0), metric=own.metric, point=own.point)
    found = _change(own, reference)
    low, high = (None if v is None else 1.0 + v / 100.0 for v in (found.percent_low, found.percent_high))
    value = 1.0 + (found.percent or 0.0) / 100.0
    return Ours(value, low, high, 1.0, found.percent, found.percent_low, found.percent_high, own.metric, own.point)


def _figure(entry: Entry, own: Measured, reference: Measured | None) -> Ours:
    scale = 100.0 if entry.unit == "%" else 1.0
    value, low, high, base = (_said(entry, v, scale) for v in (own.value, own.low, own.high, reference.value if reference else None))
    if own.evidence == "exact":  # a ratio of bytes is against the baseline already
        return Ours(value or 0.0, low, high, base, metric=own.metric, point=own.point, is_exact=True)
    found = _change(own, reference)
    change, lower, upper = found.percent, found.percent_low, found.percent_high
    if in_points(entry):
        change, lower, upper = (None if v is None else 100.0 * v for v in (found.absolute, found.low, found.high))
    return Ours(value or 0.0, low, high, base, change, lower, upper, own.metric, own.point)


def _said(entry: Entry, value: float | None, scale: float) -> float | None:
    if value is None:
        return None
    return scale * (1.0 - 1.0 / value) if entry.metric == "compression_ratio" and value else scale * value
