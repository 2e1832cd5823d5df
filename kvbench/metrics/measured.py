"""The words of measurement: what a figure is, how it may be compared, and what an evaluator says of a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kvbench.metrics.paired import Scoring

HEADLINE = "headline"
"""The field of :class:`Summary` that holds an evaluator's main scores: short name → value in 0–1, higher is better."""
Evidence = Literal["exact", "paired", "noisy"]
Better = Literal["lower", "higher", "neither"]
MethodRecords = Mapping[str, Mapping[str, Any]]
"""One method's records: key → data."""
NOTHING_YET: Literal["nothing compressed yet"] = "nothing compressed yet"
"""The audit's label of a row that stores all as it is: no accusation, and no compression."""


@dataclass(frozen=True)
class Measured:
    """One figure of one method, with what is needed to compare it honestly.

    Attributes:
        metric: Name, for example ``perplexity``.
        value: The figure.
        unit: ``nats``, ``bytes``, ``seconds``, ``tokens/s``, ``1`` …
        evidence: ``exact`` (compare by value), ``paired`` (by ``samples`` on the same keys), ``noisy`` (by rank test).
        better: Which direction is an improvement.
        point: Where it was measured (``batch=1,context=512``), empty if there is one point.
        low, high: 95 % interval, if the evaluator gives one.
        samples: key → value of the raw repeats or per-sample scores.
        scale: ``log`` when ``samples`` are logarithms of ``value`` (perplexity and its NLL).
        rounding: How far arithmetic alone may move the figure, on the scale of ``samples``; a smaller difference is none.
        scoring: What ``samples`` are, which decides how they are tested (:mod:`kvbench.metrics.paired`).
        read_path: How stored bytes were read while a clock ran (``fused``), empty for the reference path and where none ran.
    """

    metric: str
    value: float | None
    unit: str
    evidence: Evidence
    better: Better
    point: str = ""
    low: float | None = None
    high: float | None = None
    samples: Mapping[str, float] = field(default_factory=dict)
    scale: Literal["linear", "log"] = "linear"
    scoring: Scoring = ""
    rounding: float | None = None
    read_path: str = ""


@dataclass(frozen=True)
class Summary:
    """What an evaluator says of one method: flat fields for tables, and measured figures for ``compare``."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    measured: Sequence[Measured] = ()
