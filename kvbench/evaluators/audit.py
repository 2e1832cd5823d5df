"""What every run checks of every method before a number of it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from kvbench.errors import RunFailed
from kvbench.evaluators.base import Evaluator, MethodRecords, Summary, UnitContext, param
from kvbench.metrics.measured import NOTHING_YET
from kvbench.spec import RunSpec, Unit

if TYPE_CHECKING:
    from kvbench.instruments.audit import Verdict
    from kvbench.instruments.session import Session

IDENTITY = ("head", "identity")
"""Checks of the baseline without which no figure of a run stands."""


@dataclass(frozen=True)
class Audit(Evaluator):
    """Ledger against storages, transplant, canary, identity; see :mod:`kvbench.instruments.audit`."""

    name: ClassVar[str] = "audit"
    title: ClassVar[str] = "are the bytes really fewer, and are they what attention reads? (part of every run)"
    context: int = param(1024, "prompt tokens, at most the run's context", least=2)
    steps: int = param(16, "tokens that read the cache", least=2)

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        return self.units_of(1, methods)

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """Label every method from one prompt; where nothing is compressed yet at its length, from one of the run's.

        Raises:
            RunFailed: the baseline through kvbench's path is not the model.
        """
        from kvbench.instruments.audit import Auditor

        whole = session.spec.context
        auditor = Auditor(session, min(self.context, whole), self.steps, unit.methods)
        found: dict[str, Verdict] = {}

        def examine(label: str) -> None:
            verdict = auditor.examine(label)
            if verdict.label == NOTHING_YET and self.context < whole:
                verdict = Auditor(session, whole, self.steps, [label]).examine(label)
            context.audited(label, verdict.label, verdict.to_plain())
            found[label] = verdict

        for label in unit.methods:
            context.alone(label, partial(examine, label))
            _demand_identity(found.get(label))

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        return {}


def _demand_identity(verdict: Verdict | None) -> None:
    """End the run where the baseline is not the model: every figure of it would be of another one.

    Raises:
        RunFailed: says which comparison failed, and by how much.
    """
    checks = {} if verdict is None else verdict.checks
    for name in IDENTITY:
        check = checks.get(name)
        if check is not None and not check.passed:
            text = f"kvbench does not compute what this model computes: {name}, {check.figure:.3g}, {check.detail}"
            raise RunFailed(text, hint="kvbench verify baseline --model MODEL  # and tell us which model it is")
