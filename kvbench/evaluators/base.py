"""What every evaluator is: it plans units, measures them, and summarises records.

Planning and summarising are pure and import no torch, so that the dashboard, ``show`` and
``compare`` can use them. Only :meth:`Evaluator.run` touches a model, through a ``Session``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kvbench.errors import UsageError
from kvbench.figures import Figure
from kvbench.measures.paired import Scoring
from kvbench.parameters import build, param, parameters
from kvbench.spec import RunSpec
from kvbench.state import Unit

if TYPE_CHECKING:
    from kvbench.engine.session import Session

__all__ = [
    "BASELINE",
    "HEADLINE",
    "Better",
    "Evaluator",
    "Evidence",
    "Measured",
    "MethodRecords",
    "Stage",
    "Summary",
    "UnitContext",
    "build",
    "param",
]

BASELINE = "baseline"
"""Label of the row that all others are compared with."""
HEADLINE = "headline"
"""The field of :class:`Summary` that holds an evaluator's main scores: short name → value in 0–1, higher is better."""
Evidence = Literal["exact", "paired", "noisy"]
Better = Literal["lower", "higher", "neither"]
Stage = Callable[[str, int, int], None]
"""Tells progress: what, done, total."""
MethodRecords = Mapping[str, Mapping[str, Any]]
"""One method's records: key → data."""


@dataclass(frozen=True)
class Measured:
    """One figure of one method, with what is needed to compare it honestly.

    Attributes:
        metric: Name, for example ``perplexity``.
        value: The figure.
        unit: ``nats``, ``bytes``, ``seconds``, ``tokens/s``, ``1`` …
        evidence: ``exact`` (compare by value), ``paired`` (by ``samples`` on the same keys), ``noisy`` (by rank test).
        better: Which direction is an improvement.
        point: Where it was measured (``batch=1,context=512``), empty if there is one point.
        low, high: 95 % interval, if the evaluator gives one.
        samples: key → value of the raw repeats or per-sample scores.
        scale: ``log`` when ``samples`` are logarithms of ``value`` (perplexity and its NLL).
        rounding: How far arithmetic alone may move the figure, on the scale of ``samples``; a smaller difference is none.
        scoring: What ``samples`` are, which decides how they are tested (:mod:`kvbench.measures.paired`).
        read_path: How stored bytes were read while a clock ran (``fused``), empty for the reference path and where none ran.
    """

    metric: str
    value: float | None
    unit: str
    evidence: Evidence
    better: Better
    point: str = ""
    low: float | None = None
    high: float | None = None
    samples: Mapping[str, float] = field(default_factory=dict)
    scale: Literal["linear", "log"] = "linear"
    scoring: Scoring = ""
    rounding: float | None = None
    read_path: str = ""


@dataclass(frozen=True)
class Summary:
    """What an evaluator says of one method: flat fields for tables, and measured figures for ``compare``."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    measured: Sequence[Measured] = ()


class UnitContext:
    """How an evaluator speaks while it runs a unit; implemented by the worker."""

    apart: bool = False
    """Methods that would go together must go one by one in this unit."""

    def method_started(self, method: str) -> None:
        """Mark ``method`` as the one in flight (the row lights up; a crash is blamed on it)."""
        raise NotImplementedError

    def record(self, method: str, key: str, data: Mapping[str, Any]) -> None:
        """Journal one measurement."""
        raise NotImplementedError

    def audited(self, method: str, label: str, checks: Mapping[str, Any]) -> None:
        """Journal what the audit found: the label and every check with its figure."""
        raise NotImplementedError

    def guard(self, method: str, action: Callable[[], None]) -> bool:
        """Run ``action``; a failure in it becomes ``method``'s row. ``True`` if it succeeded."""
        raise NotImplementedError

    def together(self) -> Together:
        """A guard for what all methods do together; a crash then is nobody's, until each is tried alone and lights up."""
        self.method_started(BASELINE)
        return Together(self, self.apart)

    def is_alive(self, method: str) -> bool:
        """Whether ``method`` has not failed in this run."""
        raise NotImplementedError


@dataclass(frozen=True)
class Together:
    """The guard of :meth:`UnitContext.together`. ``apart``: together they ended a worker, so each must go alone from the start."""

    context: UnitContext
    apart: bool = False

    def __call__(self, method: str, action: Callable[[], None]) -> bool:
        self.context.method_started(method)
        return self.context.guard(method, action)


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

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """Measure one unit and journal its records through ``context``."""
        raise NotImplementedError

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        """Figures by method from whatever records there are so far; a method's depend on its own and the baseline's alone."""
        raise NotImplementedError

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        """Tables and heat maps from whatever records there are so far; ``facts`` are what :meth:`prepare` told."""
        return []
