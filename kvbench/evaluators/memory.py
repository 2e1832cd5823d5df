"""Memory three ways, each named as what it is: stored bytes, the allocator's peak, what the device or the process shows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.evaluators.base import BASELINE, Evaluator, Measured, MethodRecords, Summary, UnitContext, param
from kvbench.metrics import recorded
from kvbench.metrics.points import Point, parse_list, points
from kvbench.spec import RunSpec, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.cache import KVCache
    from kvbench.instruments.protocol import Prompt
    from kvbench.instruments.session import Session


@dataclass(frozen=True)
class Memory(Evaluator):
    """Bytes after the prompt, itemised from the tensors that attention reads, and the peak on the way there.

    On a GPU every method runs its own prefill into its own cache, as ``model.generate`` would, so that the
    allocator's peak and NVML's figure are its own. On a CPU there is no allocator to ask and the process's
    resident memory is given; the prompt is then prefilled once for all.
    """

    name: ClassVar[str] = "memory"
    title: ClassVar[str] = "stored bytes itemised, bytes per token, allocator peak, NVML or resident memory"
    record: ClassVar[Any] = recorded.Weighed
    batch: str = param("1", "sequences at once; several as 1+8+32")
    context: str = param("", "prompt lengths, tokens, as 2048+32768; empty is the run's --context")
    steps: int = param(4, "decode steps after the prompt, before the peak is read", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_list("batch", self.batch)
        if self.context:
            parse_list("context", self.context)

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        return self.units_of(len(points(spec, self.batch, self.context)), methods, extra=1)

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """One point, method by method."""
        point = points(session.spec, self.batch, self.context)[unit.index]
        tokens = session.prompt(point.batch, point.context)
        scale = _Scale(session, context, point, tokens, self.steps)
        if session.loaded.device.type != "cuda" and session.spec.protocol == "prefill":
            context.alone(BASELINE, partial(scale.share_prompt, unit.methods))
        for label in unit.methods:
            context.alone(label, partial(scale.weigh, label))

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        return {label: _summary(self._as_asked(of)) for label, of in records.items()}

    def _as_asked(self, records: MethodRecords) -> MethodRecords:
        """In the order in which points are asked for, whatever the order in which they were measured."""
        batches, contexts = parse_list("batch", self.batch), parse_list("context", self.context) if self.context else []

        def place(item: tuple[str, Mapping[str, Any]]) -> tuple[int, ...]:
            batch, context = item[1]["batch"], item[1]["context"]
            return _at(batches, batch), batch, _at(contexts, context), context

        return dict(sorted(records.items(), key=place))


class _Scale:
    def __init__(self, session: Session, context: UnitContext, point: Point, tokens: Tensor, steps: int) -> None:
        self.session, self.context, self.point, self.tokens, self.steps = session, context, point, tokens, steps
        self.prompt: Prompt | None = None

    def share_prompt(self, labels: Sequence[str]) -> None:
        self.prompt = self.session.runner.prefill(self.tokens, self.session.needs(labels))

    def weigh(self, label: str) -> None:
        """Fill the method's cache, count it, decode a little, read the peaks."""
        gpu = self.session.loaded.device.type == "cuda"
        if gpu:
            self.session.runner.folds.held.clear()  # another method's folded weights are none of this one's memory
            _reset_peaks()
        cache = self._filled(label)
        data = self._counted(cache)
        for _ in range(self.steps):
            self.session.runner.forward(self.tokens[:, :1], cache)
        data |= _device_figures() if gpu else _process_figures()
        self.context.record(label, str(self.point), data)

    def _filled(self, label: str) -> KVCache:
        runner, method = self.session.runner, self.session.methods[label]
        if self.prompt is not None:
            return runner.compress(method, self.prompt)
        cache = runner.cache(method)
        runner.forward(self.tokens, cache)
        return cache

    def _counted(self, cache: KVCache) -> dict[str, Any]:
        layers = cache.per_layer()
        ledger = cache.ledger()
        tokens = self.point.batch * self.point.context
        return {
            "batch": self.point.batch,
            "context": self.point.context,
            "ledger": dict(ledger.items),
            "slack_bytes": ledger.slack,
            "artefacts": dict(ledger.artefacts),
            "stored_bytes": ledger.stored,
            "allocated_bytes": ledger.allocated,
            "baseline_bytes": self.session.baseline_bytes(tokens),
            "bytes_per_token": ledger.stored / tokens,
            "per_layer": [layer.stored for layer in layers],
        }


def _reset_peaks() -> None:
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()
    for index in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(index)


def _device_figures() -> dict[str, int | None]:
    """The allocator's peak and steady state over all GPUs, and NVML's figure for them (all processes)."""
    import torch

    from kvbench.models.telemetry import device_memory_used

    indices = [i for i in range(torch.cuda.device_count()) if torch.cuda.memory_allocated(i)]
    used = [device_memory_used(i) for i in indices]
    return {
        "allocator_peak_bytes": sum(torch.cuda.max_memory_allocated(i) for i in indices),
        "allocator_now_bytes": sum(torch.cuda.memory_allocated(i) for i in indices),
        "gpu_used_bytes": sum(u for u in used if u is not None) if any(u is not None for u in used) else None,
    }


def _process_figures() -> dict[str, int | None]:
    from kvbench.models.telemetry import resident_bytes

    return {"resident_bytes": resident_bytes(os.getpid())}


MEMORY_NAMES = {"gpu_used_bytes": "GPU (NVML)", "allocator_peak_bytes": "allocator peak", "resident_bytes": "resident"}


def _at(asked: Sequence[int], value: int) -> int:
    return asked.index(value) if value in asked else len(asked)


def _summary(records: MethodRecords) -> Summary:
    """The first point's flat fields, and what was measured at all."""
    if not records:
        return Summary()
    first = records[next(iter(records))]
    name = next((n for n in MEMORY_NAMES if first.get(n) is not None), None)
    fields: dict[str, Any] = {k: v for k, v in first.items() if k not in ("batch", "context")}
    fields |= {k: first[k] / first["batch"] for k in ("stored_bytes", "allocated_bytes", "baseline_bytes")}
    fields |= {
        "compression_factor": first["baseline_bytes"] / first["stored_bytes"],
        "compression_ratio": 1 - first["stored_bytes"] / first["baseline_bytes"],
        "memory_bytes": first.get(name) if name else None,
        "memory_name": MEMORY_NAMES.get(name or ""),
        "memory_points": {key: dict(data) for key, data in records.items()},
    }
    return Summary(fields, [m for key, data in records.items() for m in _measured(key, data)])


def _measured(point: str, data: Mapping[str, Any]) -> list[Measured]:
    exact = [
        Measured("memory_stored_bytes", data["stored_bytes"], "bytes", "exact", "lower", point),
        Measured("bytes_per_token", data["bytes_per_token"], "bytes", "exact", "lower", point),
    ]
    seen = [
        Measured(name, data[name], "bytes", "noisy", "lower", point, samples={"0": data[name]})
        for name in MEMORY_NAMES
        if data.get(name) is not None
    ]
    return exact + seen
