"""What each event does to a state: one rule a kind of event, and ``apply``, the only place where a run's state changes.

A finished unit is closed: what is said of it later (a worker that was given up and spoke once more) is left out. A method
fails by the plan's first unit that it failed in, whichever worker met it first. Rules cost the same at any size of the run;
only those that end or begin something great look at all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from types import MappingProxyType
from typing import Any

from kvbench.record import events as ev
from kvbench.record.collecting import uncollected
from kvbench.record.state.changes import by_place, changed, logged, put, row_changed
from kvbench.record.state.kept import PlanOrdered, UnitSet
from kvbench.record.state.states import OVER_BUDGET, Effort, Failure, MethodState, RunState
from kvbench.record.state.under_way import close, leave, method_started, unit_finished, unit_lost, unit_started, worker_died, worker_started
from kvbench.spec import RunSpec, Unit

TELEMETRY_KEPT = 600


# Before the first unit ----------------------------------------------------------------------


def _run_started(state: RunState, e: ev.RunStarted) -> RunState:
    units = {u["id"]: Unit(u["id"], u["evaluator"], u["index"], tuple(u["methods"]), u.get("steps", 1)) for u in e.units}
    places = {unit: place for place, unit in enumerate(units)}
    planned = Counter(label for unit in units.values() for label in unit.methods)
    steps: Counter[str] = Counter()
    for unit in units.values():
        steps[unit.evaluator] += unit.steps
    return changed(
        state, status="running", spec=RunSpec.from_plain(e.spec), units=MappingProxyType(units), places=MappingProxyType(places),
        done=UnitSet(places), efforts=MappingProxyType({name: Effort(count) for name, count in steps.items()}),
        methods=MappingProxyType({m: MethodState(m, units_planned=planned[m]) for m in e.methods}),
        started_at=e.at, kvbench_version=e.kvbench_version, error=None, hint=None, exit_code=None,
    )  # fmt: skip


def _run_resumed(state: RunState, e: ev.RunResumed) -> RunState:
    """Unfinished units are done again whole, with the methods that failed in them; what is finished stays."""
    state = leave(state, state.in_flight)
    for label, row in state.methods.items():
        final = tuple(f for f in row.failures if f.unit in state.done or f.kind == OVER_BUDGET)
        if final != row.failures:
            state = row_changed(state, label, **_failing(final), status="failed" if final else "waiting")
    for unit in state.lost:
        state = close(state, unit, -1)
    return changed(
        state, status="running", lost=MappingProxyType({}), workers=MappingProxyType({}),
        error=None, hint=None, exit_code=None, result=None,
    )  # fmt: skip


def _stage(state: RunState, e: ev.StageEntered) -> RunState:
    return changed(state, stage=e.stage, stage_done=e.done, stage_total=e.total)


def _environment(state: RunState, e: ev.EnvironmentRecorded) -> RunState:
    return changed(state, environment=MappingProxyType(e.environment))


def _model(state: RunState, e: ev.ModelLoaded) -> RunState:
    return changed(state, model=MappingProxyType(e.model), stage="")


def _corpus(state: RunState, e: ev.CorpusLoaded) -> RunState:
    return changed(state, corpus=MappingProxyType(e.corpus), stage="")


def _prepared(state: RunState, e: ev.EvaluatorPrepared) -> RunState:
    prepared = put(state.prepared, e.evaluator, MappingProxyType(e.facts))
    return changed(state, prepared=by_place(prepared, state.efforts), stage="")


def _budget(state: RunState, e: ev.BudgetSolved) -> RunState:
    state = row_changed(state, e.method, budget=e)
    return state if e.error is None else _fail(state, e.method, Failure(None, e.error, OVER_BUDGET))


# What is measured ---------------------------------------------------------------------------


def _record(state: RunState, e: ev.RecordMade) -> RunState:
    """Also into the row, whose views are new with it."""
    by_method = state.records.get(e.evaluator)
    of = by_method.get(e.method) if by_method is not None else None
    place, attempt = state.places.get(e.unit, len(state.places)), state.attempts.get(e.unit, 0)
    kept = (of if isinstance(of, PlanOrdered) else PlanOrdered()).plus(e.key, e.data, place, attempt)
    methods = put(by_method or {}, e.method, kept)
    records = put(state.records, e.evaluator, methods if of is not None else by_place(methods, state.methods))
    if by_method is None:
        records = by_place(records, state.efforts)
    row = state.methods.get(e.method) or MethodState(e.method)
    return changed(state, records=records, methods=put(state.methods, e.method, changed(row, revision=row.revision + 1)))


def _audit(state: RunState, e: ev.AuditRecorded) -> RunState:
    return row_changed(state, e.method, audit_label=e.label, audit=MappingProxyType(e.audit))


def _method_failed(state: RunState, e: ev.MethodFailed) -> RunState:
    return _fail(state, e.method, Failure(e.unit, e.error, e.kind))


def _fail(state: RunState, method: str, failure: Failure) -> RunState:
    """The row's end, by the first of its failures in the plan."""
    row = state.methods.get(method, MethodState(method))
    every = [*(f for f in row.failures if f.unit != failure.unit), failure]
    every.sort(key=lambda f: -1 if f.unit is None else state.places.get(f.unit, len(state.places)))
    return row_changed(state, method, **_failing(tuple(every)), status="failed")


def _failing(failures: tuple[Failure, ...]) -> dict[str, Any]:
    first = failures[0] if failures else None
    return {
        "failures": failures,
        "error": first.error if first else None,
        "error_kind": first.kind if first else None,
        "failed_in": first.unit if first else None,
    }


# What goes along, and the end ---------------------------------------------------------------


def _telemetry(state: RunState, e: ev.TelemetrySampled) -> RunState:
    return changed(state, telemetry=(*state.telemetry[-TELEMETRY_KEPT + 1 :], e))


def _interrupted(state: RunState, e: ev.RunInterrupted) -> RunState:
    return changed(leave(state, state.in_flight), status="interrupted", error=e.reason, stage="")


def _failed(state: RunState, e: ev.RunFailed) -> RunState:
    return changed(leave(state, state.in_flight), status="failed", error=e.error, hint=e.hint, exit_code=e.exit_code, stage="")


def _finished(state: RunState, e: ev.RunFinished) -> RunState:
    """Rows that lost units end too: with what they have, or as failed if they have nothing."""
    state = leave(state, state.in_flight)
    for label, row in state.methods.items():
        if row.status == "waiting" and row.units_done:
            state = row_changed(state, label, status="done")
        elif row.status == "waiting":
            state = _fail(state, label, Failure(None, "each of its units killed the worker", "lost"))
    return changed(state, status="finished", result=e.result, stage="")


_RULES: Mapping[type[ev.Event], Callable[[RunState, Any], RunState]] = {
    ev.RunStarted: _run_started,
    ev.RunResumed: _run_resumed,
    ev.WorkerStarted: worker_started,
    ev.StageEntered: _stage,
    ev.EnvironmentRecorded: _environment,
    ev.ModelLoaded: _model,
    ev.CorpusLoaded: _corpus,
    ev.EvaluatorPrepared: _prepared,
    ev.BudgetSolved: _budget,
    ev.UnitStarted: unit_started,
    ev.MethodStarted: method_started,
    ev.RecordMade: _record,
    ev.AuditRecorded: _audit,
    ev.MethodFailed: _method_failed,
    ev.UnitFinished: unit_finished,
    ev.UnitLost: unit_lost,
    ev.WorkerDied: worker_died,
    ev.TelemetrySampled: _telemetry,
    ev.NoteWritten: logged,
    ev.RunInterrupted: _interrupted,
    ev.RunFailed: _failed,
    ev.RunFinished: _finished,
}
_OF_A_UNIT = (ev.UnitStarted, ev.MethodStarted, ev.RecordMade, ev.MethodFailed, ev.UnitFinished, ev.UnitLost)


def apply(state: RunState, event: ev.Event) -> RunState:
    """The state after ``event``. The only place where a run's state changes.

    Raises:
        ResultError: the end of a unit that was never planned.
    """
    is_late = isinstance(event, _OF_A_UNIT) and event.unit in state.done
    after = state if is_late else _RULES[type(event)](state, event)
    return _timed(after if after is not state else changed(state), state, event)


def _timed(fresh: RunState, before: RunState, event: ev.Event) -> RunState:
    """The state with its times, set in place since nobody has seen it yet."""
    gap = event.at - before.last_at if before.last_at is not None and not isinstance(event, ev.RunResumed) else 0.0
    if gap > 0.0:
        object.__setattr__(fresh, "active_seconds", before.active_seconds + gap)
    if gap >= 0.0:  # clocks of several processes lie a little apart: no time is counted twice
        object.__setattr__(fresh, "last_at", event.at)
    return fresh


@uncollected()
def replay(events: Iterable[ev.Event]) -> RunState:
    """Fold a whole journal."""
    return reduce(apply, events, RunState())
