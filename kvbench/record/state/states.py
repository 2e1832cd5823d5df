"""What is known of a run after some prefix of its journal: frozen, and without a rule of how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from kvbench.metrics.row import MethodStatus
from kvbench.record import events as ev
from kvbench.spec import RunSpec, Unit

Status = Literal["planned", "running", "interrupted", "failed", "finished"]
Records = Mapping[str, Mapping[str, Mapping[str, dict[str, Any]]]]
"""evaluator → method → key → data, each in the plan's order."""
OVER_BUDGET = "budget"
"""Kind of the failure of a method that cannot meet its budget: it would not the next time either."""


@dataclass(frozen=True)
class InFlight:
    """A unit that a worker is at.

    Attributes:
        worker: Its name, empty where there is but one.
        begun: When, seconds since the epoch. method: What it is doing there.
    """

    unit: str
    worker: str
    begun: float
    method: str | None = None


@dataclass(frozen=True)
class Failure:
    """Why a method's row ends: in which unit (``None``: before all of them), what was said, and of what kind it is."""

    unit: str | None
    error: str
    kind: str


@dataclass(frozen=True)
class MethodState:
    """One row: where the method is, and what went wrong if it failed."""

    label: str
    status: MethodStatus = "waiting"
    units_done: int = 0
    units_planned: int = 0
    error: str | None = None
    error_kind: str | None = None
    failed_in: str | None = None
    """The unit that it failed in, the plan's first of several: the failure is final once that unit is finished."""
    audit_label: str | None = None
    audit: Mapping[str, Any] | None = None
    budget: ev.BudgetSolved | None = None
    """How the budget in its label was met, or why not."""
    revision: int = 0
    """Counts this row's changes, so that views can keep what they computed."""
    failures: tuple[Failure, ...] = ()
    """All that was said of its failing, in the plan's order: workers that do not know of each other may each meet it."""


@dataclass(frozen=True)
class Effort:
    """An evaluator's steps: planned, closed (done or lost), and those whose time is known with their seconds."""

    planned: int = 0
    closed: int = 0
    timed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class RunState:
    """Everything known of a run after some prefix of its journal."""

    status: Status = "planned"
    spec: RunSpec | None = None
    units: Mapping[str, Unit] = field(default_factory=dict)
    places: Mapping[str, int] = field(default_factory=dict)
    """unit → its place in the plan."""
    done: Set[str] = frozenset()
    lost: Mapping[str, str] = field(default_factory=dict)
    in_flight: Mapping[str, InFlight] = field(default_factory=dict)
    """unit → what a worker is doing in it, the latest begun last."""
    attempts: Mapping[str, int] = field(default_factory=dict)
    """unit that was begun and is not finished → how many times it was begun."""
    workers: Mapping[str, int] = field(default_factory=dict)
    """Name of a living worker → its process id; one that needs no name has none."""
    methods: Mapping[str, MethodState] = field(default_factory=dict)
    records: Records = field(default_factory=dict)
    stage: str = ""
    stage_done: int = 0
    stage_total: int = 0
    environment: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    corpus: Mapping[str, Any] = field(default_factory=dict)
    prepared: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """evaluator → what it said of its data."""
    telemetry: tuple[ev.TelemetrySampled, ...] = ()
    log: tuple[ev.NoteWritten, ...] = ()
    efforts: Mapping[str, Effort] = field(default_factory=dict)
    """evaluator → how far it is, and at what speed."""
    started_at: float | None = None
    last_at: float | None = None
    active_seconds: float = 0.0
    """Wall time in which the run was running: gaps between an interruption and a resume are left out."""
    worker_deaths: int = 0
    error: str | None = None
    hint: str | None = None
    exit_code: int | None = None
    result: str | None = None
    kvbench_version: str = ""

    @property
    def is_over(self) -> bool:
        """No more events will come unless the run is resumed."""
        return self.status in ("finished", "failed", "interrupted")

    @property
    def elapsed(self) -> float:
        """Seconds of running so far, as the journal tells them."""
        return self.active_seconds

    @property
    def current(self) -> InFlight | None:
        """The unit that was begun last of those under way."""
        return next((self.in_flight[unit] for unit in reversed([*self.in_flight])), None)

    @property
    def current_unit(self) -> str | None:
        return self.current.unit if self.current else None

    @property
    def current_method(self) -> str | None:
        return self.current.method if self.current else None

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker that was started last of those alive."""
        return next((self.workers[name] for name in reversed([*self.workers])), None)

    @property
    def steps_done(self) -> int:
        return sum(effort.closed for effort in self.efforts.values())

    @property
    def steps_planned(self) -> int:
        return sum(effort.planned for effort in self.efforts.values())

    @property
    def remaining(self) -> float | None:
        """Estimated seconds left, by the measured seconds per step of each evaluator; ``None`` before the first unit."""
        if not any(effort.timed for effort in self.efforts.values()):
            return None
        left = sum((effort.planned - effort.closed) * self._pace(name) for name, effort in self.efforts.items())
        return left / max(1, len(self.workers))

    def expected(self, unit: str) -> float:
        """Estimated seconds that ``unit`` takes, 0 before the first one is done."""
        found = self.units[unit]
        return found.steps * self._pace(found.evaluator)

    def _pace(self, evaluator: str) -> float:
        """Seconds per step, of all evaluators where this one has done nothing yet."""
        own = self.efforts[evaluator]
        of = [own] if own.timed else self.efforts.values()
        return sum(e.seconds for e in of) / max(1, sum(e.timed for e in of))
