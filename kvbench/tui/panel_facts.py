"""What panels show, taken from a run's state; no drawing here.

Journals come from several versions and evaluators, so a fact that is not there is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from kvbench.errors import KvbenchError
from kvbench.evaluators.base import Evaluator
from kvbench.evaluators.registered import evaluators_of
from kvbench.formats import MIB, size
from kvbench.record.state import RunState
from kvbench.report.overview import bytes_per_token

QUALITY = "perplexity"


def model_name(state: RunState) -> str:
    """The model's own name, without its owner or folder."""
    given = str(state.model.get("id") or (state.spec.model.id if state.spec else "")).rstrip("/")
    name = given.removeprefix("embedded:").rsplit("/", 1)[-1]
    return f"{name} (random weights)" if state.spec and state.spec.model.random_weights else name


def kib_per_token(state: RunState) -> float | None:
    """The uncompressed cache's KiB per token: K and V of every layer and KV head."""
    found = bytes_per_token(state, dtype(state, "cache_dtype"))
    return None if found is None else found / 1024


def dtype(state: RunState, name: str = "dtype") -> str:
    """The weights' number format, or with ``cache_dtype`` the cache's; empty while it is not known."""
    found = str(state.model.get(name) or (getattr(state.spec.model, name) if state.spec else ""))
    return "" if found == "auto" else found.removeprefix("torch.")


def device(state: RunState) -> str:
    """Where the model is, a GPU by its name; empty while it is not known."""
    found = str(state.model.get("device") or (state.spec.model.device if state.spec else ""))
    name = state.model.get("device_name")
    if found.startswith("cuda") and name:
        return str(name)
    return "" if found == "auto" else found


def known_evaluators(state: RunState) -> list[Evaluator]:
    """The run's evaluators, without those whose plug-in this machine lacks."""
    spec, found = state.spec, list[Evaluator]()
    for asked in spec.evaluators if spec else ():
        with suppress(KvbenchError):
            found += evaluators_of(replace(spec, evaluators=(asked,))) if spec else []
    return found


def subject(state: RunState) -> list[str]:
    """What is measured on what, most telling first."""
    spec = state.spec
    if spec is None:
        return []
    per_token = kib_per_token(state)
    corpus = str(state.corpus.get("name") or spec.corpus.name)
    scored = [corpus, spec.protocol, f"C {spec.context} + S {spec.continuation}", f"{spec.samples} samples"]
    reads_text = any(evaluator.needs_text for evaluator in known_evaluators(state))
    facts = [
        model_name(state), *(scored if reads_text else [spec.protocol]), dtype(state), device(state),
        f"baseline {per_token:.1f} KiB/token" if per_token else "",
    ]  # fmt: skip
    return [fact for fact in facts if fact]


def overall(state: RunState) -> float:
    """Share of the run's steps that are done, with the methods already past in the unit under way."""
    if state.status == "finished":
        return 1.0
    unit = state.units.get(state.current_unit or "")
    within = 0.0
    if unit is not None and state.current_method in unit.methods:
        within = unit.steps * unit.methods.index(state.current_method) / len(unit.methods)
    return (state.steps_done + within) / max(1, state.steps_planned)


def activity(state: RunState) -> str:
    """What the worker is busy with, in a few words."""
    if state.stage:
        return f"{state.stage}{_progress(state.stage_done, state.stage_total)}"
    unit = state.units.get(state.current_unit or "")
    if unit is None:
        return "starting" if not state.done else ""
    same = [u.index for u in state.units.values() if u.evaluator == unit.evaluator]
    what = "sample" if unit.evaluator == QUALITY else "part"
    where = f" · {what} {same.index(unit.index) + 1} of {len(set(same))}" if len(set(same)) > 1 else ""
    return f"{unit.evaluator}{where}" + (f" · {state.current_method}" if state.current_method else "")


def _progress(done: int, total: int) -> str:
    if total <= 0:
        return ""
    return f" · {size(done)} of {size(total)}" if total >= MIB else f" · {done} of {total}"


def running_perplexity(state: RunState) -> dict[str, list[tuple[int, float]]]:
    """Method → (samples so far, perplexity over them), in the order of the samples."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for label in state.methods:
        found = state.records.get(QUALITY, {}).get(label, {})
        first = min((key.rpartition("/")[0] for key in found), default="")  # the run's own context, whose keys name none, before others
        records = {key.rpartition("/")[2]: data for key, data in found.items() if key.rpartition("/")[0] == first}
        scored = [r for _, r in sorted(records.items(), key=lambda item: _order(item[0])) if r.get("tokens") and r.get("nll") is not None]
        tokens = list(itertools.accumulate(float(r["tokens"]) for r in scored))
        nll = list(itertools.accumulate(float(r["nll"]) for r in scored))
        line = [(i + 1, math.exp(min(700.0, n / t))) for i, (n, t) in enumerate(zip(nll, tokens, strict=True))]
        if line:
            lines[label] = line
    return lines


def _order(key: str) -> tuple[int, str]:
    return (int(key), "") if key.isdigit() else (1 << 60, key)


@dataclass(frozen=True)
class MemorySeries:
    """Memory over time: (seconds since the run's start, bytes)."""

    resident: list[tuple[float, float]]
    gpu: list[tuple[float, float]]
    gpu_total: int | None


def memory_series(state: RunState) -> MemorySeries:
    start = state.started_at or 0.0
    resident = [(t.at - start, float(t.resident)) for t in state.telemetry if t.resident is not None]
    gpu = [(t.at - start, float(t.gpu_used)) for t in state.telemetry if t.gpu_used is not None]
    return MemorySeries(resident, gpu, next((t.gpu_total for t in reversed(state.telemetry) if t.gpu_total), None))


def ledger(state: RunState, label: str) -> dict[str, float]:
    """The newest itemised account of what the method stores: item → bytes."""
    found = _newest(state, label, "ledger")
    return {k: float(v) for k, v in found.items() if isinstance(v, (int, float))} if isinstance(found, Mapping) else {}


def per_layer(state: RunState, label: str) -> list[float]:
    """Bytes stored by each layer, first layer first."""
    found = _newest(state, label, "per_layer")
    return [float(v) for v in found] if isinstance(found, (list, tuple)) else []


def _newest(state: RunState, label: str, field: str) -> Any:
    for by_method in state.records.values():
        for record in reversed(list(by_method.get(label, {}).values())):
            if record.get(field):
                return record[field]
    return None
