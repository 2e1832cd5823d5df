"""What a run says so far, as rows: the one source of every table, live or final."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from kvbench import sweeps
from kvbench.evaluators.base import Evaluator
from kvbench.evaluators.registered import evaluators_of
from kvbench.figures import Figure
from kvbench.metrics import factors
from kvbench.metrics.measured import HEADLINE, Measured, MethodRecords, Summary
from kvbench.metrics.row import Row
from kvbench.metrics.sameness import first_alike
from kvbench.record.state import RunState
from kvbench.spec import BASELINE
from kvbench.spec.budgets import written


def baseline_of(state: RunState) -> str | None:
    return BASELINE if BASELINE in state.methods else None


def cache_dtype_of(state: RunState) -> str | None:
    """The uncompressed cache's number format, as the model was loaded or else as it was asked for; ``None`` if neither says."""
    asked = state.spec.model.cache_dtype if state.spec is not None else "auto"
    found = state.model.get("cache_dtype") or asked
    return None if found == "auto" else str(found)


def summarise(state: RunState) -> dict[str, dict[str, Summary]]:
    """evaluator → method → summary, from the records so far."""
    if state.spec is None:
        return {}
    base = baseline_of(state)
    return {e.name: _of(e, state.records.get(e.name, {}), lambda e, records: e.summarise(records, base)) for e in evaluators_of(state.spec)}


T = TypeVar("T")


def _of(evaluator: Evaluator, records: Mapping[str, MethodRecords], compute: Callable[[Evaluator, Mapping[str, MethodRecords]], T]) -> T:
    """What ``compute`` makes of the records; an error notes whose they are, as near as can be found."""
    try:
        return compute(evaluator, records)
    except Exception as error:
        error.add_note(_place(evaluator, records, compute))
        raise


def _place(evaluator: Evaluator, records: Mapping[str, MethodRecords], compute: Callable[[Any, Any], object]) -> str:
    """``records of perplexity, snapkv, sample 3``: the first method, then its first record, that breaks on its own."""
    place = f"records of {evaluator.name}"
    for label, of in records.items():
        if _breaks(evaluator, {label: of}, compute):
            key = next((key for key, data in of.items() if _breaks(evaluator, {label: {key: data}}, compute)), None)
            return f"{place}, {label}" + ("" if key is None else f", {key}")
    return place


def _breaks(evaluator: Evaluator, records: Mapping[str, MethodRecords], compute: Callable[[Any, Any], object]) -> bool:
    try:
        compute(evaluator, records)
    except Exception:
        return True
    return False


def figures(state: RunState) -> dict[str, list[Figure]]:
    """evaluator → its tables and heat maps, from the records so far; those that have none are left out.

    A sweep's own come first, under ``sweep``.
    """
    if state.spec is None:
        return {}
    found = {"sweep": sweeps.figures(state.spec, summarise(state))} if state.spec.sweep else {}
    base = baseline_of(state)
    found |= {
        e.name: _of(e, state.records.get(e.name, {}), lambda e, records: e.figures(records, base, state.prepared.get(e.name, {})))
        for e in evaluators_of(state.spec)
    }
    return {name: factors.noted(shown, cache_dtype_of(state)) for name, shown in found.items() if shown}


def fields_of(summaries: Mapping[str, Mapping[str, Summary]], method: str) -> dict[str, Any]:
    """All flat fields of one method, later evaluators filling what earlier ones lack; their headlines are put together."""
    merged: dict[str, Any] = {}
    for by_method in summaries.values():
        for key, value in by_method.get(method, Summary()).fields.items():
            earlier = merged.get(key, value)
            merged[key] = {**earlier, **value, **earlier} if key == HEADLINE else earlier
    return merged


def measured_of(summaries: Mapping[str, Mapping[str, Summary]], method: str) -> list[Measured]:
    return [m for by_method in summaries.values() for m in by_method.get(method, Summary()).measured]


def rows(state: RunState) -> list[Row]:
    """One row a method, in the plan's order."""
    summaries = summarise(state)
    same = same_tokens(state, summaries)
    return [
        _row(state, label, fields_of(summaries, label) | {"same_tokens_as": same.get(label)}, measured_of(summaries, label))
        for label in state.methods
    ]


def same_tokens(state: RunState, summaries: Mapping[str, Mapping[str, Summary]]) -> dict[str, str]:
    """Row → the first row before it, in the plan's order, that is the same row under another name."""
    return first_alike({label: fields_of(summaries, label).get("kept_tokens") for label in state.methods})


def _row(state: RunState, label: str, found: Mapping[str, Any], measured: Sequence[Measured]) -> Row:
    method = state.methods[label]
    renamed = {**found, "delta_pct": found.get("ppl_delta_pct"), "factor": found.get("compression_factor")}
    return Row(
        label=label, status=method.status, progress=method.units_done / max(1, method.units_planned),
        error=method.error, audit=method.audit_label, cache_dtype=cache_dtype_of(state),
        target_bytes=method.budget.target_bytes if method.budget else None,
        settings=written(method.budget.parameters) if method.budget else "",
        measured=_by_name(measured, found.get(HEADLINE) or {}), **{k: v for k, v in renamed.items() if k in _FROM_FIELDS},
    )  # fmt: skip


_FROM_FIELDS = set(Row.__dataclass_fields__) - {
    "label", "status", "progress", "error", "audit", "target_bytes", "settings", "cache_dtype", "measured"
}  # fmt: skip


def _by_name(measured: Sequence[Measured], headline: Mapping[str, float]) -> dict[str, Measured]:
    """Metric → its first figure; a main score → the figure that it is, if it is one and no mean of several."""
    first = {m.metric: m for m in reversed(measured)}
    mains = {name: m for name, value in headline.items() for m in measured if m.value == value and _is_of(name, m)}
    return first | {f"headline:{name}": m for name, m in mains.items()}


def _is_of(name: str, measured: Measured) -> bool:
    return measured.metric.startswith(f"{name}_") or f"={name}" in measured.point.split(",")[0]
