"""The Pareto front of size and loss, for the dashboard and the report: which rows are shown to be worth their bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvbench.metrics import factors
from kvbench.metrics.apart import is_better, is_ranked
from kvbench.metrics.measured import Measured
from kvbench.metrics.row import Row
from kvbench.spec import BASELINE


@dataclass(frozen=True)
class Point:
    """One row in the plane of size and loss.

    Attributes:
        factor: Baseline bytes (``of`` what, where that is wide) over stored bytes.
        kl: Divergence from the baseline, nats per token; low, high: its 95 % interval.
        stored: Stored bytes; where not known, ``factor`` tells sizes apart.
        ranked: Whether it may be on the front: no control, and nothing that the audit unmasked.
        measured: KL by sample, by which two points are told apart; without it their values tell.
    """

    label: str
    factor: float
    kl: float
    of: str = ""
    stored: float | None = None
    low: float | None = None
    high: float | None = None
    ranked: bool = True
    measured: Measured | None = None


def points(rows: Sequence[Row]) -> list[Point]:
    """Rows whose size and KL are both known; the baseline's KL is 0 by definition."""
    found: list[Point] = []
    for row in rows:
        kl = 0.0 if row.label == BASELINE else row.kl
        if row.status != "failed" and row.stored_bytes and row.factor and kl is not None and math.isfinite(kl):
            of, measured = factors.wide(row.cache_dtype), row.measured.get("kl_mean")
            found.append(Point(row.label, row.factor, kl, of, row.stored_bytes, row.kl_low, row.kl_high, is_ranked(row), measured))
    return found


def frontier(found: Sequence[Point]) -> list[Point]:
    """The ranked points that are shown to be worth their bytes, smallest first.

    The smallest is the first; another follows if it is shown to lose less than every smaller one on the front. So noise adds no
    corner, and of rows of one size the best stands there if it is shown to be.
    """
    best: list[Point] = []
    for point in sorted((p for p in found if p.ranked), key=_size):
        if not best or _loses_less(point, best[-1]):
            best = [p for p in best if _size(p)[0] < _size(point)[0]] + [point]
    return best


def _size(point: Point) -> tuple[float, float]:
    return (1.0 / point.factor if point.stored is None else point.stored), point.kl


def _loses_less(point: Point, than: Point) -> bool:
    if point.kl >= than.kl:
        return False  # no test can show what the values deny
    return point.measured is None or than.measured is None or is_better(point.measured, than.measured)
