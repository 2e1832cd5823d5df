"""Evaluators that summarise the made-up records plainly, so that these tests hang on no real one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from kvbench.evaluators.base import Evaluator, MethodRecords, Summary


class FakePerplexity(Evaluator):
    name: ClassVar[str] = "perplexity"

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        reference = records.get(baseline or "", {})
        return {label: Summary(_quality(found, reference)) for label, found in records.items() if found}


def _quality(found: MethodRecords, reference: MethodRecords) -> dict[str, Any]:
    tokens = sum(r["tokens"] for r in found.values())
    mean = sum(r["nll"] for r in found.values()) / tokens
    rises = [(r["nll"] - reference[k]["nll"]) / r["tokens"] for k, r in found.items() if k in reference] or [0.0]
    rise = sum(rises) / len(rises)
    spread = 1.96 * math.sqrt(sum((r - rise) ** 2 for r in rises)) / len(rises)
    some = next(iter(found.values()))
    return {
        "samples": len(found), "perplexity": math.exp(mean), "perplexity_low": math.exp(mean - 0.05), "perplexity_high": math.exp(mean + 0.05),
        "ppl_delta_pct": 100 * math.expm1(rise), "delta_low": 100 * math.expm1(rise - spread), "delta_high": 100 * math.expm1(rise + spread),
        "kl": sum(r["kl"] for r in found.values()) / tokens, "top1": sum(r["agree"] for r in found.values()) / tokens,
        "compression_factor": some["baseline_bytes"] / some["stored_bytes"], "stored_bytes": some["stored_bytes"],
    }  # fmt: skip


class FakeSpeed(Evaluator):
    name: ClassVar[str] = "speed"

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        return {label: Summary(found["0"]) for label, found in records.items() if "0" in found}


class FakeMemory(FakeSpeed):
    name: ClassVar[str] = "memory"


FAKES: Mapping[str, Evaluator] = {e.name: e for e in (FakePerplexity(), FakeSpeed(), FakeMemory())}
