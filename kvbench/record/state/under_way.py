"""Rules of what is under way: workers, the units that they are at, and where rows stand by it.

Workers that do not know of each other may be at several units, so nothing here looks beyond the unit that an event is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from types import MappingProxyType

from kvbench.errors import ResultError
from kvbench.metrics.row import MethodStatus
from kvbench.record import events as ev
from kvbench.record.state.changes import by_place, changed, logged, put, without
from kvbench.record.state.kept import UnitSet
from kvbench.record.state.states import Effort, InFlight, MethodState, RunState
from kvbench.spec import Unit


def leave(state: RunState, units: Iterable[str]) -> RunState:
    """Nobody is at these units any more; methods that no worker is at any more wait."""
    left = {unit: one for unit in units if (one := state.in_flight.get(unit))}
    if not left:
        return state
    in_flight = without(state.in_flight, *left)
    resting = [one.method for one in left.values() if one.method and _rests(state, one.method, in_flight)]
    return changed(state, in_flight=in_flight, methods=_rows(state, dict.fromkeys(resting, "waiting")))


def _rests(state: RunState, method: str, in_flight: Mapping[str, InFlight]) -> bool:
    """Whether the method was running, and nobody is at it now."""
    row = state.methods.get(method)
    return row is not None and row.status == "running" and all(one.method != method for one in in_flight.values())


def _rows(state: RunState, statuses: Mapping[str, MethodStatus]) -> Mapping[str, MethodState]:
    """The rows with new statuses."""
    rows: dict[str, MethodState] = state.methods.copy()  # type: ignore[attr-defined]  # as in _put
    for label, status in statuses.items():
        row = rows.get(label) or MethodState(label)
        rows[label] = changed(row, status=status, revision=row.revision + 1)
    return MappingProxyType(rows)


def _of_worker(state: RunState, worker: str) -> list[str]:
    return [one.unit for one in state.in_flight.values() if one.worker == worker]


def unit_started(state: RunState, e: ev.UnitStarted) -> RunState:
    """A worker with a name is at one unit at a time."""
    state = leave(state, [e.unit, *(_of_worker(state, e.worker) if e.worker else ())])
    under_way = put(state.in_flight, e.unit, InFlight(e.unit, e.worker, e.at))
    attempts = put(state.attempts, e.unit, state.attempts.get(e.unit, 0) + 1)
    return changed(state, in_flight=under_way, attempts=attempts, stage="")


def method_started(state: RunState, e: ev.MethodStarted) -> RunState:
    before = state.in_flight.get(e.unit) or InFlight(e.unit, "", e.at)
    in_flight = put(state.in_flight, e.unit, changed(before, method=e.method))
    statuses: dict[str, MethodStatus] = {}
    if before.method and _rests(state, before.method, in_flight):
        statuses[before.method] = "waiting"
    row = state.methods.get(e.method)
    if row is None or row.status not in ("running", "failed"):
        statuses[e.method] = "running"
    return changed(state, in_flight=in_flight, methods=_rows(state, statuses))


def worker_started(state: RunState, e: ev.WorkerStarted) -> RunState:
    return changed(state, workers=put(without(state.workers, e.worker), e.worker, e.pid))


def worker_died(state: RunState, e: ev.WorkerDied) -> RunState:
    who = f"worker {e.worker}" if e.worker else "worker"
    note = ev.NoteWritten(e.at, f"{who} died ({e.reason})" + (f" in {e.unit}" if e.unit else ""), "error")
    units = [e.unit] if e.unit and not e.worker else _of_worker(state, e.worker)
    left = leave(logged(state, note), units)
    return changed(left, workers=without(state.workers, e.worker), worker_deaths=state.worker_deaths + 1, stage="")


def unit_finished(state: RunState, e: ev.UnitFinished) -> RunState:
    """Counted for its rows; a row whose units are all closed is done."""
    unit, in_flight = _planned(state, e.unit), without(state.in_flight, e.unit)
    rows: dict[str, MethodState] = state.methods.copy()  # type: ignore[attr-defined]  # as in _put
    for label in unit.methods:
        rests = _rests(state, label, in_flight)
        rows[label] = _counted(rows.get(label) or MethodState(label), rests)
    spent = state.efforts[unit.evaluator]
    spent = Effort(
        spent.planned, spent.closed + unit.steps * (e.unit not in state.lost), spent.timed + unit.steps, spent.seconds + e.seconds
    )
    return changed(
        state, in_flight=in_flight, attempts=without(state.attempts, e.unit), lost=without(state.lost, e.unit),
        methods=MappingProxyType(rows), efforts=put(state.efforts, unit.evaluator, spent), done=_also(state.done, e.unit),
    )  # fmt: skip


def _counted(row: MethodState, rests: bool) -> MethodState:
    """The row with one more unit; ``rests``: nobody is at it any more."""
    closed = row.units_done + 1
    status: MethodStatus = "waiting" if rests else row.status
    if closed >= row.units_planned and status != "failed":
        status = "done"
    return changed(row, units_done=closed, status=status, revision=row.revision + 1)


def _also(done: Set[str], unit: str) -> Set[str]:
    return done.plus(unit) if isinstance(done, UnitSet) else done | {unit}


def _planned(state: RunState, unit: str) -> Unit:
    if unit not in state.units:
        raise ResultError(f"the journal speaks of unit '{unit}', which its plan does not have", hint="start a new run")
    return state.units[unit]


def unit_lost(state: RunState, e: ev.UnitLost) -> RunState:
    state = leave(state, [_planned(state, e.unit).id])
    if e.unit not in state.lost:
        state = close(state, e.unit, 1)
    return changed(state, lost=by_place(put(state.lost, e.unit, e.reason), state.places))


def close(state: RunState, unit: str, sign: int) -> RunState:
    """Its steps are nothing that is left to do; with ``sign`` -1 they are again."""
    found = state.units[unit]
    effort = state.efforts[found.evaluator]
    return changed(state, efforts=put(state.efforts, found.evaluator, changed(effort, closed=effort.closed + sign * found.steps)))
