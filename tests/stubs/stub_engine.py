"""A session without a model and an evaluator that counts: the processes around them are the real ones."""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import stub_faults

from kvbench.errors import ModelError
from kvbench.evaluators.base import Evaluator, Measured, Summary, UnitContext
from kvbench.spec import RunSpec, Unit


class StubSession:
    environment: ClassVar[dict[str, Any]] = {"kvbench": "stub"}
    loaded: ClassVar[Any] = types.SimpleNamespace(dtype="torch.float32")
    info_corpus: ClassVar[dict[str, Any]] = {"name": "stub text", "content_hash": "c0ffee"}

    def __init__(self, spec: RunSpec) -> None:
        self.info_model = {"id": spec.model.id, "weights_hash": os.environ.get("STUB_WEIGHTS", "beef"), "dtype": "float32", "device": "cpu"}

    @classmethod
    def open(cls, spec: RunSpec, methods: Mapping[str, Any], stage: Any, evaluators: Any = ()) -> StubSession:
        stage("loading model", 0, 2)
        print("library talk on stdout")
        if spec.model.id == "missing":
            raise ModelError("model 'missing' is not there", hint="use another --model")
        if spec.model.id == "crashing":
            os.abort()
        stage("loading model", 2, 2)
        return cls(spec)

    def close(self) -> None:
        pass


def sign(text: str) -> float:
    """A figure that depends on the text alone."""
    return float(sum((i + 1) * ord(c) for i, c in enumerate(text)) % 9973) + 0.25


@dataclass(frozen=True)
class Counting(Evaluator):
    """``fault`` happens in ``method`` at unit ``index``, at most ``times`` times (counted in the file ``tally``).

    Several, joined by +, happen each in its own of as many methods.
    """

    name: ClassVar[str] = "counting"
    title: ClassVar[str] = "Counts."
    ms: int = 2
    fault: str = ""
    method: str = ""
    index: int = 0
    times: int = 99
    tally: str = ""

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        return [Unit(f"{self.name}/{n}", self.name, n, tuple(methods), len(methods)) for n in range(spec.samples)]

    def run(self, unit: Unit, session: Any, context: UnitContext) -> None:
        for label in unit.methods:
            context.method_started(label)
            context.guard(label, partial(self._measure, unit, label, context))

    def _measure(self, unit: Unit, label: str, context: UnitContext) -> None:
        time.sleep(self.ms / 1000)
        value = sign(f"{label} {unit.index}")
        fault = dict(zip(self.method.split("+"), self.fault.split("+"), strict=True)).get(label)
        if fault and unit.index == self.index and self._is_due():
            value = self._fail(fault, value)
        context.record(label, str(unit.index), {"value": value, "tokens": 1})

    def _is_due(self) -> bool:
        if not self.tally:
            return True
        tally = Path(self.tally)
        seen = int(tally.read_text()) if tally.exists() else 0
        tally.write_text(str(seen + 1))
        return seen < self.times

    def _fail(self, fault: str, value: float) -> float:
        if fault == "nan":
            return value * float("nan")
        if fault == "raise":
            raise ValueError("a broken method\nwith two lines")
        if fault == "memory":
            raise MemoryError("no room")
        if fault in stub_faults.FAULTS:
            stub_faults.FAULTS[fault]()
            return value
        os.kill(os.getpid(), getattr(signal, fault))
        time.sleep(60)
        return value

    def summarise(self, records: Mapping[str, Mapping[str, Mapping[str, Any]]], baseline: str | None) -> dict[str, Summary]:
        return {label: self._summary(by_key) for label, by_key in records.items()}

    def _summary(self, by_key: Mapping[str, Mapping[str, Any]]) -> Summary:
        samples = {key: data["value"] for key, data in sorted(by_key.items())}
        total = sum(samples.values())
        fields = {"samples": len(samples), "perplexity": total / len(samples), "total_tokens": sum(d["tokens"] for d in by_key.values())}
        return Summary(fields, [Measured("perplexity", total, "1", "paired", "lower", samples=samples)])


@dataclass(frozen=True)
class Audit(Counting):
    """Stands in for the real audit, which needs a model."""

    name: ClassVar[str] = "audit"

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        return [Unit("audit/0", self.name, 0, tuple(methods), len(methods))]

    def _measure(self, unit: Unit, label: str, context: UnitContext) -> None:
        context.audited(label, "real", {"ledger": {"passed": True}})


def install() -> None:
    """Put the stubs where the real modules would be imported from."""
    for name, stub, cls in (("kvbench.instruments.session", "Session", StubSession), ("kvbench.evaluators.audit", "Audit", Audit)):
        module = types.ModuleType(name)
        setattr(module, stub, cls)
        sys.modules[name] = module
