"""Every evaluator by name, and those that a run asks for. Imports no torch."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from kvbench.errors import KvbenchError
from kvbench.evaluators.base import Evaluator, build, facts
from kvbench.spec import EvaluatorSpec, RunSpec
from kvbench.spec.registry import Registry
from kvbench.spec.suites import SUITES

EVALUATORS: Registry[Evaluator] = Registry("kvbench.evaluators", "evaluator", Evaluator, facts, reserved=SUITES)


@lru_cache(maxsize=64)
def _evaluator(spec: EvaluatorSpec) -> Evaluator:
    built: Evaluator = build(EVALUATORS.load(spec.name), spec, "evaluator")
    return built


def evaluators_of(spec: RunSpec) -> list[Evaluator]:
    """The evaluators that a spec asks for, in its order."""
    return [_evaluator(e) for e in spec.evaluators]


def record_of(name: str) -> Any:
    """What one record of an evaluator holds (:attr:`Evaluator.record`); ``None`` where it is not installed."""
    try:
        return _evaluator(EvaluatorSpec(name)).record
    except KvbenchError:
        return None
