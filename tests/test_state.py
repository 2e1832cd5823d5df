"""The reducer: whole, pure, and the same whether a run was cut or not."""

from __future__ import annotations

from kvbench.engine.journal import SCHEMA
from kvbench.record import events as ev
from kvbench.record.state import RunState, apply, replay
from kvbench.spec import RunSpec

import pytest  # isort: skip

METHODS = ["baseline", "knorm", "int8"]


def started(units: int = 2) -> ev.RunStarted:
    plan = [{"id": f"u{i}", "evaluator": "perplexity", "index": i, "methods": METHODS, "steps": 3} for i in range(units)]
    return ev.RunStarted(0.0, RunSpec().to_plain(), plan, METHODS, "0.1.0", SCHEMA)


def unit(index: int, at: float, failing: str | None = None, methods: list[str] = METHODS) -> list[ev.Event]:
    """One unit's events."""
    name = f"u{index}"
    told: list[ev.Event] = [ev.UnitStarted(at, name)]
    for method in methods:
        told.append(ev.MethodStarted(at, name, method))
        if method == failing:
            told.append(ev.MethodFailed(at, name, method, "it broke", "ValueError"))
        else:
            told.append(ev.RecordMade(at, name, "perplexity", method, str(index), {"nll": index + len(method)}))
    return [*told, ev.UnitFinished(at + 1, name, 1.0)]


def seen(state: RunState) -> object:
    """What must not depend on interruptions."""
    rows = {m.label: (m.status, m.units_done, m.error) for m in state.methods.values()}
    return rows, state.records, state.done


def test_a_whole_run() -> None:
    state = replay([started(), *unit(0, 1), *unit(1, 3), ev.RunFinished(5.0, "result.json", 5.0)])
    assert state.status == "finished"
    assert all(m.status == "done" and m.units_done == 2 for m in state.methods.values())
    assert state.steps_done == state.steps_planned == 6
    assert state.elapsed == 5.0


@pytest.mark.parametrize("cut", range(1, 17))
def test_a_run_cut_anywhere_and_resumed_ends_the_same(cut: int) -> None:
    """Also where a method failed: in a unit that was finished it stays failed, in one that was not it is tried again."""
    alive = ["baseline", "int8"]
    whole = [started(), *unit(0, 1, failing="knorm"), *unit(1, 3, methods=alive)]
    before = whole[:cut]
    state = replay(before)
    again: list[ev.Event] = [ev.RunResumed(100.0, len(state.done))]
    resumed = apply(state, again[0])
    if "u0" not in state.done:
        assert resumed.methods["knorm"].status == "waiting"
        again += unit(0, 101, failing="knorm")
    if "u1" not in state.done:
        again += unit(1, 103, methods=alive)
    assert seen(replay([*before, *again])) == seen(replay(whole))


def test_a_unit_done_again_is_counted_once() -> None:
    once = replay([started(), *unit(0, 1)])
    assert seen(replay([started(), *unit(0, 1), *unit(0, 3)])) == seen(once)


def test_time_between_interruption_and_resume_is_not_running_time() -> None:
    state = replay([started(), *unit(0, 1), ev.RunInterrupted(3.0, "SIGTERM"), ev.RunResumed(1000.0, 1), ev.NoteWritten(1002.0, "on")])
    assert state.elapsed == 5.0


def test_a_row_is_running_only_while_its_method_is_in_flight() -> None:
    told = [started(), ev.UnitStarted(1.0, "u0"), ev.MethodStarted(1.0, "u0", "knorm")]
    assert replay(told).methods["knorm"].status == "running"
    for end in (ev.MethodStarted(2.0, "u0", "int8"), ev.WorkerDied(2.0, "SIGSEGV", "u0", "knorm"), ev.RunInterrupted(2.0, "SIGTERM")):
        assert replay([*told, end]).methods["knorm"].status == "waiting"


def test_rows_that_lost_units_end_with_what_they_have() -> None:
    lost = ev.UnitLost(4.0, "u1", "it crashes")
    state = replay([started(), *unit(0, 1), lost, ev.RunFinished(5.0, "result.json")])
    assert {m.status for m in state.methods.values()} == {"done"}
    state = replay([started(1), ev.UnitLost(1.0, "u0", "it crashes"), ev.RunFinished(5.0, "result.json")])
    assert {m.status for m in state.methods.values()} == {"failed"}


def test_lost_units_are_tried_again_after_a_resume() -> None:
    state = replay([started(), *unit(0, 1), ev.UnitLost(4.0, "u1", "it crashes"), ev.RunResumed(5.0, 1)])
    assert not state.lost
    assert state.status == "running"


def test_remaining_time_follows_the_seconds_of_finished_units() -> None:
    assert replay([started()]).remaining is None
    assert replay([started(4), *unit(0, 1)]).remaining == pytest.approx(3.0)


def test_apply_changes_nothing_in_place() -> None:
    before = replay([started(), *unit(0, 1)])
    copy = seen(before)
    apply(before, ev.RecordMade(9.0, "u1", "perplexity", "knorm", "1", {"nll": 2}))
    assert seen(before) == copy


def test_every_event_survives_its_line() -> None:
    told = [started(), *unit(0, 1, failing="knorm"), ev.TelemetrySampled(1.0, 5, None), ev.RunFailed(2.0, "no", None, 3)]
    lines = [ev.encode(e) for e in told]
    assert replay(map(ev.decode, lines)) == replay(told)
