"""What every evaluator is: it plans units, measures them, and summarises records.

Planning and summarising are pure and import no torch, so that the dashboard, ``show`` and
``compare`` can use them. Only :meth:`Evaluator.run` touches a model, through a ``Session``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.errors import UsageError
from kvbench.figures import Figure, Grid, Table
from kvbench.instruments.context import Stage, UnitContext
from kvbench.metrics.measured import HEADLINE, Better, Evidence, Measured, MethodRecords, Summary
from kvbench.spec import BASELINE, RunSpec, Unit
from kvbench.spec.parameters import build, check_values, param, parameters

if TYPE_CHECKING:  # for annotations alone: both bring torch
    from kvbench.instruments.protocol import Prompt as Prompt
    from kvbench.instruments.session import Session as Session

__all__ = [
    "BASELINE",
    "HEADLINE",
    "Better",
    "Evaluator",
    "Evidence",
    "Figure",
    "Grid",
    "Measured",
    "MethodRecords",
    "RunSpec",
    "Stage",
    "Summary",
    "Table",
    "Unit",
    "UnitContext",
    "build",
    "param",
]


def facts(cls: type[Evaluator]) -> dict[str, Any]:
    """What ``kvbench list`` says of an evaluator; reads all that a plan reads of its class.

    Raises:
        Exception: whatever reading it raises; a ``TypeError`` where something is missing or of another kind.
    """
    for name in ("name", "title"):
        if not isinstance(getattr(cls, name, None), str):
            raise TypeError(f"its class has no text '{name}'")
    if not all(isinstance(text, str) for text in cls.protocols):
        raise TypeError("its class has protocols that are no texts")
    flags = {"protocols": list(cls.protocols), "needs_text": cls.needs_text, "needs_weights": cls.needs_weights}
    return {"name": cls.name, "title": cls.title, **flags, "parameters": cls.parameters()}


@dataclass(frozen=True)
class Evaluator:
    """Base of evaluators: a frozen dataclass whose fields are its parameters.

    Class attributes:
        name: Registered name.
        title: One line for ``kvbench list evaluators``.
        needs_text: It scores the corpus.
        needs_weights: It means nothing on random weights and refuses them.
        protocols: Protocols it can follow.
        record: What the data of one record hold, as a type for ``msgspec.convert``; records that a file gives back are held to it.
            ``None`` holds them to nothing.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs_text: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = False
    protocols: ClassVar[tuple[str, ...]] = ("prefill", "streaming")
    record: ClassVar[Any] = None

    def __post_init__(self) -> None:
        check_values(self)

    def check(self, spec: RunSpec) -> None:
        """Refuse before anything is loaded what this evaluator cannot do with ``spec``: unknown names, broken files.

        Imports no torch.

        Raises:
            KvbenchError: says what, where, and what to try.
        """

    def longest(self, spec: RunSpec) -> int:
        """Tokens of the longest sequence that it reads, 0 if the run's own lengths bound it; held to the model's positions."""
        return 0

    def check_length(self, spec: RunSpec, limit: int) -> None:
        """Refuse sequences that are longer than a model's positions; a ``limit`` of 0 is none.

        Raises:
            UsageError: says how long they are.
        """
        longest = self.longest(spec)
        if limit and longest > limit:
            raise UsageError(
                f"evaluator '{self.name}' reads sequences of {longest:,} tokens, beyond this model's {limit:,} positions",
                hint=f"shorter ones: kvbench list evaluators has the parameters of {self.name}",
            )

    def prepare(self, session: Session, stage: Stage) -> Mapping[str, Any]:
        """Read its data before its first unit, and keep them in ``session.kept``; called again after a resume.

        Returns:
            What the result should say of them (sources, digests), plain values; ``left_out`` maps what it does without to why.

        Raises:
            KvbenchError: they cannot be had; the run ends before anything of it is scored.
        """
        return {}

    @classmethod
    def parameters(cls) -> list[tuple[str, Any, str]]:
        """(name, default, meaning) of each parameter."""
        return parameters(cls)

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        """The work, in order."""
        raise NotImplementedError

    def units_of(self, count: int, methods: Sequence[str], extra: int = 0) -> list[Unit]:
        """So many units, each of all methods: a step for every method, and ``extra`` ones for what they share."""
        return [Unit(f"{self.name}/{i}", self.name, i, tuple(methods), steps=len(methods) + extra) for i in range(count)]

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """Measure one unit and journal its records through ``context``."""
        raise NotImplementedError

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        """Figures by method from whatever records there are so far; a method's depend on its own and the baseline's alone."""
        raise NotImplementedError

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        """Tables and heat maps from whatever records there are so far; ``facts`` are what :meth:`prepare` told."""
        return []
