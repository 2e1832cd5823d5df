"""Records of the harness's tasks as scores, without the harness: column → question → value. Pure and light."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

VISIBLE = "/visible"
"""Ends the key of a record where compression saw the question though it need not have."""
SEEN = ("hidden", "visible", "both")
"""Whether compression sees the question, as an evaluator is asked."""
PREFERRED = ("acc_norm", "acc", "exact_match")
"""Metrics that stand for a task, if it has them (for multiple choice, what leaderboards report); else its first."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """One metric of one task or pooled group, over one method's questions.

    Attributes:
        name: ``metric,filter`` as the harness writes it.
        values: Question → value, where values are numbers whose mean is the metric.
        aggregation: The harness's function of ``raw``, where it is not the mean.
        is_lower_better: As the task says.
    """

    name: str
    values: dict[str, float] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)
    aggregation: str = ""
    is_lower_better: bool = False

    @property
    def is_share(self) -> bool:
        """Whether it can be an accuracy: within [0, 1], and more is better."""
        return bool(self.values) and not self.is_lower_better and all(0.0 <= value <= 1.0 for value in self.values.values())

    @property
    def title(self) -> str:
        """Its name for people: the filter is named only if it is one."""
        metric, _, filtered = self.name.partition(",")
        return metric if filtered in ("", "none") else f"{metric} ({filtered})"

    def value(self) -> float | None:
        """The mean, or what the harness's own function makes of the raw values; ``None`` where that function is not to be had."""
        if self.values:
            return sum(self.values.values()) / len(self.values)
        return aggregate(self.aggregation, list(self.raw.values()))


Columns = dict[str, dict[str, Metric]]
"""Task or pooled group → metric's name → metric."""


def columns(records: Mapping[str, Record], *, visible: bool = False) -> Columns:
    """One method's metrics, from its records that hid the question, or from those that did not."""
    found: Columns = {}
    for key, record in records.items():
        if key.endswith(VISIBLE) != visible:
            continue
        rules, lower = record.get("aggregation", {}), record.get("lower", ())
        for name, value in record["metrics"].items():
            metrics = found.setdefault(record["column"], {})
            metric = metrics.setdefault(name, Metric(name, aggregation=rules.get(name, ""), is_lower_better=name in lower))
            if metric.aggregation:
                metric.raw[key.removesuffix(VISIBLE)] = value
            elif isinstance(value, int | float):
                metric.values[key.removesuffix(VISIBLE)] = float(value)
    return found


def main_metric(every: Iterable[Mapping[str, Metric]]) -> str | None:
    """The metric that stands for a column, the same for all methods."""
    shares: dict[str, bool] = {}
    for metrics in every:
        for name, metric in metrics.items():
            shares[name] = shares.get(name, True) and metric.is_share
    names = [name for name, is_share in shares.items() if is_share]
    return next((name for wanted in PREFERRED for name in names if name.partition(",")[0] == wanted), next(iter(names), None))


def aggregate(name: str, values: Sequence[Any]) -> float | None:
    """The harness's aggregation of one value a question, by its name or ``module:function``; ``None`` if it cannot be had."""
    if not name or not values:
        return None
    try:
        function = _function(name)
        items = [tuple(value) if isinstance(value, list) else value for value in values]
        return float(function(items))
    except (ImportError, AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _function(name: str) -> Any:
    from importlib import import_module

    module, colon, function = name.partition(":")
    if colon:
        return getattr(import_module(module), function)
    from lm_eval.api.registry import get_aggregation

    return get_aggregation(name)


def total_bytes(records: Iterable[Record]) -> tuple[float, float]:
    """(stored, baseline) bytes of all compressed contexts."""
    every = list(records)
    return sum(r["stored_bytes"] for r in every), sum(r["baseline_bytes"] for r in every)
