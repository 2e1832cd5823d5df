"""What every run checks of every method before a number of it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from kvbench.evaluators.base import Evaluator, MethodRecords, Summary, UnitContext, param
from kvbench.spec import RunSpec
from kvbench.state import Unit

if TYPE_CHECKING:
    from kvbench.engine.session import Session


@dataclass(frozen=True)
class Audit(Evaluator):
    """Ledger against storages, surviving copies, canary, identity; see :mod:`kvbench.engine.audit`."""

    name: ClassVar[str] = "audit"
    title: ClassVar[str] = "are the bytes really fewer, and are they what attention reads? (part of every run)"
    context: int = param(1024, "prompt tokens, at most the run's context")
    steps: int = param(16, "tokens that read the cache")

    def __post_init__(self) -> None:
        if self.context < 2 or self.steps < 2:
            raise ValueError(f"context={self.context}, steps={self.steps}; both must be at least 2")

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        return [Unit(f"{self.name}/0", self.name, 0, tuple(methods), steps=len(methods))]

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """Label every method from one prompt."""
        from kvbench.engine.audit import Auditor

        auditor = Auditor(session, min(self.context, session.spec.context), self.steps, unit.methods)
        for label in unit.methods:
            context.method_started(label)
            context.guard(label, partial(_audit, auditor, label, context))

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        return {}


def _audit(auditor: object, label: str, context: UnitContext) -> None:
    verdict = auditor.examine(label)  # type: ignore[attr-defined]
    context.audited(label, verdict.label, verdict.to_plain())
