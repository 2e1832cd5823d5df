"""The one reading of a journal: ``apply(state, event) -> state``, pure and total.

The dashboard, the plain display, ``watch``, resume and the final result all fold the same
events through this reducer. A ``RunState`` is never changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from kvbench import events as ev
from kvbench.spec import RunSpec

Status = Literal["planned", "running", "interrupted", "failed", "finished"]
MethodStatus = Literal["waiting", "running", "done", "failed"]
Records = Mapping[str, Mapping[str, Mapping[str, dict[str, Any]]]]
"""evaluator → method → key → data."""

TELEMETRY_KEPT = 600
LOG_KEPT = 400
OVER_BUDGET = "budget"
"""Kind of the failure of a method that cannot meet its budget: it would not the next time either."""


@dataclass(frozen=True)
class Unit:
    """A piece of work that is finished or not: one index of one evaluator for a group of methods."""

    id: str
    evaluator: str
    index: int
    methods: tuple[str, ...]
    steps: int = 1
    """How many method-sized steps it holds; only for progress."""

    def to_plain(self) -> dict[str, Any]:
        return {"id": self.id, "evaluator": self.evaluator, "index": self.index, "methods": list(self.methods), "steps": self.steps}


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
    """The unit that it failed in: the failure is final once that unit is finished."""
    audit_label: str | None = None
    audit: Mapping[str, Any] | None = None
    budget: ev.BudgetSolved | None = None
    """How the budget in its label was met, or why not."""
    revision: int = 0
    """Counts this row's changes, so that views can keep what they computed."""


@dataclass(frozen=True)
class RunState:
    """Everything known of a run after some prefix of its journal."""

    status: Status = "planned"
    spec: RunSpec | None = None
    units: Mapping[str, Unit] = field(default_factory=dict)
    done: frozenset[str] = frozenset()
    lost: Mapping[str, str] = field(default_factory=dict)
    current_unit: str | None = None
    current_method: str | None = None
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
    unit_seconds: Mapping[str, float] = field(default_factory=dict)
    started_at: float | None = None
    last_at: float | None = None
    active_seconds: float = 0.0
    """Wall time in which the run was running: gaps between an interruption and a resume are left out."""
    worker_pid: int | None = None
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
    def steps_done(self) -> int:
        return sum(unit.steps for key, unit in self.units.items() if key in self.done or key in self.lost)

    @property
    def steps_planned(self) -> int:
        return sum(unit.steps for unit in self.units.values())

    @property
    def remaining(self) -> float | None:
        """Estimated seconds left, by the measured seconds per step of each evaluator; ``None`` before the first unit."""
        if not self.unit_seconds:
            return None
        spent: dict[str, tuple[float, int]] = {}
        for key, seconds in self.unit_seconds.items():
            unit = self.units[key]
            total, steps = spent.get(unit.evaluator, (0.0, 0))
            spent[unit.evaluator] = (total + seconds, steps + unit.steps)
        overall = sum(s for s, _ in spent.values()) / max(1, sum(n for _, n in spent.values()))
        left = 0.0
        for key, unit in self.units.items():
            if key in self.done or key in self.lost:
                continue
            seconds, steps = spent.get(unit.evaluator, (overall, 1))
            left += unit.steps * seconds / max(1, steps)
        return left


K = TypeVar("K")
V = TypeVar("V")


def _put(mapping: Mapping[K, V], key: K, value: V) -> Mapping[K, V]:
    return MappingProxyType({**mapping, key: value})


def _row(state: RunState, method: str, **changes: Any) -> RunState:
    row = state.methods.get(method, MethodState(method))
    return replace(state, methods=_put(state.methods, method, replace(row, revision=row.revision + 1, **changes)))


def _idle(state: RunState) -> RunState:
    """No method is in flight."""
    label = state.current_method
    if label is not None and state.methods[label].status == "running":
        state = _row(state, label, status="waiting")
    return replace(state, current_method=None)


def _run_started(state: RunState, e: ev.RunStarted) -> RunState:
    units = {u["id"]: Unit(u["id"], u["evaluator"], u["index"], tuple(u["methods"]), u.get("steps", 1)) for u in e.units}
    rows = {m: MethodState(m, units_planned=sum(m in u.methods for u in units.values())) for m in e.methods}
    return replace(
        state, status="running", spec=RunSpec.from_plain(e.spec), units=MappingProxyType(units),
        methods=MappingProxyType(rows), started_at=e.at, kvbench_version=e.kvbench_version, error=None, hint=None, exit_code=None,
    )  # fmt: skip


def _run_resumed(state: RunState, e: ev.RunResumed) -> RunState:
    """Unfinished units are done again whole, with the methods that failed in them; what is finished stays."""
    state = _idle(state)
    for label, row in state.methods.items():
        if row.status == "failed" and row.failed_in not in state.done and row.error_kind != OVER_BUDGET:
            state = _row(state, label, status="waiting", error=None, error_kind=None, failed_in=None)
    return replace(
        state, status="running", lost=MappingProxyType({}), current_unit=None, worker_pid=None,
        error=None, hint=None, exit_code=None, result=None, last_at=e.at,
    )  # fmt: skip


def _worker_started(state: RunState, e: ev.WorkerStarted) -> RunState:
    return replace(state, worker_pid=e.pid)


def _stage(state: RunState, e: ev.StageEntered) -> RunState:
    return replace(state, stage=e.stage, stage_done=e.done, stage_total=e.total)


def _environment(state: RunState, e: ev.EnvironmentRecorded) -> RunState:
    return replace(state, environment=MappingProxyType(e.environment))


def _model(state: RunState, e: ev.ModelLoaded) -> RunState:
    return replace(state, model=MappingProxyType(e.model), stage="")


def _corpus(state: RunState, e: ev.CorpusLoaded) -> RunState:
    return replace(state, corpus=MappingProxyType(e.corpus), stage="")


def _prepared(state: RunState, e: ev.EvaluatorPrepared) -> RunState:
    return replace(state, prepared=_put(state.prepared, e.evaluator, MappingProxyType(e.facts)), stage="")


def _budget(state: RunState, e: ev.BudgetSolved) -> RunState:
    if e.error is None:
        return _row(state, e.method, budget=e)
    return _row(state, e.method, budget=e, status="failed", error=e.error, error_kind=OVER_BUDGET)


def _unit_started(state: RunState, e: ev.UnitStarted) -> RunState:
    return replace(_idle(state), current_unit=e.unit, stage="")


def _method_started(state: RunState, e: ev.MethodStarted) -> RunState:
    return replace(_row(_idle(state), e.method, status="running"), current_method=e.method)


def _record(state: RunState, e: ev.RecordMade) -> RunState:
    by_method = state.records.get(e.evaluator, {})
    by_key = by_method.get(e.method, {})
    records = _put(state.records, e.evaluator, _put(by_method, e.method, _put(by_key, e.key, e.data)))
    return replace(_row(state, e.method), records=records)


def _audit(state: RunState, e: ev.AuditRecorded) -> RunState:
    return _row(state, e.method, audit_label=e.label, audit=MappingProxyType(e.audit))


def _method_failed(state: RunState, e: ev.MethodFailed) -> RunState:
    return _row(state, e.method, status="failed", error=e.error, error_kind=e.kind, failed_in=e.unit)


def _close_unit(state: RunState, unit_id: str) -> RunState:
    """Count the unit for its rows; a row whose units are all closed is done."""
    for label in state.units[unit_id].methods:
        row = state.methods[label]
        closed = row.units_done + 1
        status: MethodStatus = "failed" if row.status == "failed" else "done" if closed >= row.units_planned else "waiting"
        state = _row(state, label, units_done=closed, status=status)
    return replace(_idle(state), current_unit=None)


def _unit_finished(state: RunState, e: ev.UnitFinished) -> RunState:
    if e.unit in state.done:
        return replace(_idle(state), current_unit=None)
    state = _close_unit(state, e.unit)
    return replace(state, done=state.done | {e.unit}, unit_seconds=_put(state.unit_seconds, e.unit, e.seconds))


def _unit_lost(state: RunState, e: ev.UnitLost) -> RunState:
    return replace(_idle(state), lost=_put(state.lost, e.unit, e.reason), current_unit=None)


def _worker_died(state: RunState, e: ev.WorkerDied) -> RunState:
    note = ev.NoteWritten(e.at, f"worker died ({e.reason})" + (f" in {e.unit}" if e.unit else ""), "error")
    return replace(_idle(_note(state, note)), worker_pid=None, worker_deaths=state.worker_deaths + 1, current_unit=None, stage="")


def _telemetry(state: RunState, e: ev.TelemetrySampled) -> RunState:
    return replace(state, telemetry=(*state.telemetry[-TELEMETRY_KEPT + 1 :], e))


def _note(state: RunState, e: ev.NoteWritten) -> RunState:
    return replace(state, log=(*state.log[-LOG_KEPT + 1 :], e))


def _interrupted(state: RunState, e: ev.RunInterrupted) -> RunState:
    return replace(_idle(state), status="interrupted", error=e.reason, current_unit=None, stage="")


def _failed(state: RunState, e: ev.RunFailed) -> RunState:
    return replace(_idle(state), status="failed", error=e.error, hint=e.hint, exit_code=e.exit_code, current_unit=None, stage="")


def _finished(state: RunState, e: ev.RunFinished) -> RunState:
    """Rows that lost units end too: with what they have, or as failed if they have nothing."""
    state = _idle(state)
    for label, row in state.methods.items():
        if row.status == "waiting" and row.units_done:
            state = _row(state, label, status="done")
        elif row.status == "waiting":
            state = _row(state, label, status="failed", error="each of its units killed the worker", error_kind="lost")
    return replace(state, status="finished", result=e.result, current_unit=None, stage="")


_RULES: Mapping[type[ev.Event], Callable[[RunState, Any], RunState]] = {
    ev.RunStarted: _run_started,
    ev.RunResumed: _run_resumed,
    ev.WorkerStarted: _worker_started,
    ev.StageEntered: _stage,
    ev.EnvironmentRecorded: _environment,
    ev.ModelLoaded: _model,
    ev.CorpusLoaded: _corpus,
    ev.EvaluatorPrepared: _prepared,
    ev.BudgetSolved: _budget,
    ev.UnitStarted: _unit_started,
    ev.MethodStarted: _method_started,
    ev.RecordMade: _record,
    ev.AuditRecorded: _audit,
    ev.MethodFailed: _method_failed,
    ev.UnitFinished: _unit_finished,
    ev.UnitLost: _unit_lost,
    ev.WorkerDied: _worker_died,
    ev.TelemetrySampled: _telemetry,
    ev.NoteWritten: _note,
    ev.RunInterrupted: _interrupted,
    ev.RunFailed: _failed,
    ev.RunFinished: _finished,
}


def apply(state: RunState, event: ev.Event) -> RunState:
    """The state after ``event``. The only place where a run's state changes."""
    after = _RULES[type(event)](state, event)
    gap = max(0.0, event.at - state.last_at) if state.last_at is not None and not isinstance(event, ev.RunResumed) else 0.0
    return replace(after, last_at=event.at, active_seconds=state.active_seconds + gap)


def replay(events: Iterable[ev.Event]) -> RunState:
    """Fold a whole journal."""
    return reduce(apply, events, RunState())
