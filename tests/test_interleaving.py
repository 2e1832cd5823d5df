"""What a run finds hangs on what was measured, never on the order in which workers told it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluators import record, repeat, weighed

from kvbench.engine.journal import SCHEMA
from kvbench.evaluators.memory import Memory
from kvbench.metrics import probes, speeds
from kvbench.record import events as ev
from kvbench.record import results
from kvbench.record.state import RunState, apply, replay
from kvbench.spec import EvaluatorSpec, RunSpec

METHODS = ["baseline", "knorm", "int8"]
COUNTS = {"perplexity": 3, "memory": 2, "speed": 4}
BATCHES = (8, 1)
"""As a run asks for them: its first point is the larger."""
UNITS = [(evaluator, index) for evaluator, count in COUNTS.items() for index in range(count)]
UNITS += [("capacity", index) for index in range(len(METHODS))]


def started() -> ev.RunStarted:
    asked = (EvaluatorSpec("perplexity"), EvaluatorSpec.parse("memory:batch=8+1,context=100"))
    asked += (EvaluatorSpec.parse("speed:batch=8+1"), EvaluatorSpec("capacity"))
    plan = [{"id": f"{e}/{i}", "evaluator": e, "index": i, "methods": methods_of(e, i), "steps": 3} for e, i in UNITS]
    return ev.RunStarted(0.0, RunSpec(evaluators=asked).to_plain(), plan, METHODS, "0.1.0", SCHEMA)


def methods_of(evaluator: str, index: int) -> list[str]:
    return [METHODS[index]] if evaluator == "capacity" else METHODS


def measured(evaluator: str, index: int, label: str) -> dict[str, dict[str, Any]]:
    """Key → data, in the order in which the evaluator tells them."""
    dice = random.Random(f"{evaluator}/{index}/{label}")
    if evaluator == "perplexity":
        return {str(2 * index + row): record(3 + dice.random(), [dice.random()], dice.randint(30, 60)) for row in range(2)}
    if evaluator == "memory":
        return {f"batch={BATCHES[index]},context=100": weighed(BATCHES[index], resident_bytes=dice.randint(1, 9))}
    if evaluator == "speed":
        batch = BATCHES[index // 2]
        return {f"batch={batch},context=64/repeat={index % 2}": repeat(batch, 64, dice.random())}
    probes = {"1": False, "2": False, "4": True, "3": False}
    facts = {"find": "batch", "grain": 1, "most": 8, "context": 64, "limited_by": "allocation"}
    return {f"batch={size},context=64": {**facts, "batch": int(size), "out_of_memory": full} for size, full in probes.items()}


@dataclass(frozen=True)
class Story:
    """What becomes of one unit.

    Attributes:
        cut: After so many of its events the first attempt ended, with its worker; -1: there was one attempt.
        failing: A method that breaks. lost: It is left out. twice: Its end is told twice, and a late line comes after it.
    """

    cut: int = -1
    failing: str | None = None
    lost: bool = False
    twice: bool = False


def told(evaluator: str, index: int, story: Story, worker: str = "") -> list[ev.Event]:
    """The events of one unit, in its worker's order."""
    unit = f"{evaluator}/{index}"
    calm = list(_attempt(evaluator, index, story.failing, worker))
    before = list(_attempt(evaluator, index, None, worker, stale=True))[: story.cut]
    first = [*before, ev.WorkerDied(2.0, "SIGSEGV", unit, None, worker)] if story.cut >= 0 else []
    if story.lost:
        return [*first, ev.UnitLost(3.0, unit, f"it kills in {unit}")]
    late = [ev.UnitFinished(9.0, unit, 5.0), ev.RecordMade(9.0, unit, evaluator, "knorm", "late", {"value": 1})]
    late += [ev.MethodFailed(9.0, unit, "knorm", "late", "crash")]
    return [*first, *calm, ev.UnitFinished(4.0, unit, 1.0), *(late if story.twice else [])]


def _attempt(evaluator: str, index: int, failing: str | None, worker: str, *, stale: bool = False) -> Iterator[ev.Event]:
    """``stale``: other data, and a key that the next attempt does not have."""
    unit = f"{evaluator}/{index}"
    yield ev.UnitStarted(1.0, unit, worker)
    for label in methods_of(evaluator, index):
        yield ev.MethodStarted(1.0, unit, label)
        if label == failing:
            yield ev.MethodFailed(1.0, unit, label, f"it broke in {unit}", "ValueError")
            continue
        found = measured(evaluator, index, label)
        if stale:
            found = {key: {**data, "stale": True} for key, data in [*found.items(), ("99", next(iter(found.values())))]}
        for key, data in found.items():
            yield ev.RecordMade(1.0, unit, evaluator, label, key, data)


def found(state: RunState) -> object:
    """Everything but times and the log, in its order."""
    rows = [replace(row, revision=0) for row in state.methods.values()]
    records = [(e, m, key, data) for e, of in state.records.items() for m, keys in of.items() for key, data in keys.items()]
    return rows, records, list(state.done), list(state.lost.items()), list(state.prepared), state.steps_done, state.worker_deaths


def written(state: RunState) -> bytes:
    return results.dumps({**results.build(state, "mine"), "seconds": 0.0})


ANY = [label for label in METHODS if label != "baseline"]
STORIES = st.lists(
    st.builds(
        Story, cut=st.sampled_from([-1, -1, 0, 1, 3, 6]), failing=st.sampled_from([None, None, None, *ANY]),
        lost=st.sampled_from([False, False, False, True]), twice=st.booleans(),
    ),
    min_size=len(UNITS), max_size=len(UNITS),
)  # fmt: skip


def interleaved(streams: Sequence[list[ev.Event]], dice: random.Random) -> list[ev.Event]:
    """All streams in one, each in its own order."""
    turns = [at for at, stream in enumerate(streams) for _ in stream]
    dice.shuffle(turns)
    heads = [iter(stream) for stream in streams]
    return [next(heads[at]) for at in turns]


@settings(max_examples=60, deadline=None)
@given(STORIES, st.randoms(use_true_random=False), st.booleans())
def test_interleaved_workers_find_what_one_finds_in_the_plans_order(stories: list[Story], dice: random.Random, named: bool) -> None:
    """Units done again after a death, lost units, ends told twice, late lines and failing methods included."""
    every = [told(*unit, story, f"w{at}" if named else "") for at, (unit, story) in enumerate(zip(UNITS, stories, strict=True))]
    in_order = replay([started(), *(event for stream in every for event in stream)])
    mixed = replay([started(), *interleaved(every, dice)])
    assert found(mixed) == found(in_order)
    assert not mixed.in_flight
    assert written(mixed) == written(in_order)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(len(UNITS))), st.integers(-1, 8), st.integers(0, len(UNITS) - 1))
def test_units_in_any_order_and_one_done_again_give_the_calm_runs_file(order: list[int], cut: int, again: int) -> None:
    calm = replay([started(), *(event for unit in UNITS for event in told(*unit, Story()))])
    streams = [told(*unit, Story(cut=cut if at == again else -1)) for at, unit in enumerate(UNITS)]
    turned = replay([started(), *(event for at in order for event in streams[at])])
    assert written(turned) == written(calm)


def test_records_are_read_in_the_plans_order_by_every_evaluator() -> None:
    backwards = replay([started(), *(event for unit in reversed(UNITS) for event in told(*unit, Story()))])
    assert list(backwards.records) == ["perplexity", "memory", "speed", "capacity"]
    assert list(backwards.records["perplexity"]) == METHODS
    assert list(backwards.records["perplexity"]["knorm"]) == ["0", "1", "2", "3", "4", "5"]
    assert list(backwards.records["capacity"]["int8"]) == [f"batch={size},context=64" for size in (1, 2, 4, 3)]
    (row,) = [row for row in orjson.loads(written(backwards))["results"] if row["method"] == "knorm"]
    assert row["memory_points"]["batch=8,context=100"]["resident_bytes"] == row["memory_bytes"]


def test_a_unit_done_again_leaves_nothing_of_the_first_attempt() -> None:
    """A search that ends elsewhere the second time must not be read with the sizes that the first one tried."""
    state = replay([started(), *told("capacity", 1, Story(cut=9))])
    assert all("stale" not in data and key != "99" for key, data in state.records["capacity"]["knorm"].items())


def test_a_method_that_was_not_tried_again_keeps_what_it_had() -> None:
    first = told("perplexity", 0, Story(cut=9))
    blamed = ev.MethodFailed(2.0, "perplexity/0", "knorm", "the worker died in it", "crash")
    again = [e for e in told("perplexity", 0, Story()) if not isinstance(e, ev.RecordMade) or e.method != "knorm"]
    died = next(at for at, e in enumerate(first) if isinstance(e, ev.WorkerDied))
    state = replay([started(), *first[:died], blamed, *again])
    assert list(state.records["perplexity"]["knorm"]) == ["0", "1", "99"]
    assert list(state.records["perplexity"]["int8"]) == ["0", "1"]


def test_the_plans_first_failure_is_the_rows_whichever_came_first() -> None:
    early, late = told("perplexity", 0, Story(failing="knorm")), told("memory", 1, Story(failing="knorm"))
    for order in ([*early, *late], [*late, *early]):
        row = replay([started(), *order]).methods["knorm"]
        assert (row.status, row.error, row.failed_in) == ("failed", "it broke in perplexity/0", "perplexity/0")


def test_a_resume_forgets_only_failures_of_units_that_are_done_again() -> None:
    open_ended = told("perplexity", 0, Story(failing="knorm"))[:-1]
    state = replay([started(), *open_ended, *told("memory", 1, Story(failing="knorm")), ev.RunResumed(9.0, 1)])
    assert (state.methods["knorm"].status, state.methods["knorm"].failed_in) == ("failed", "memory/1")
    state = replay([started(), *open_ended, ev.RunResumed(9.0, 1)])
    assert (state.methods["knorm"].status, state.methods["knorm"].error) == ("waiting", None)


def test_two_units_in_flight_are_both_known_and_a_death_ends_its_own() -> None:
    both = [
        started(), ev.WorkerStarted(1.0, 11, 1, "a"), ev.WorkerStarted(1.0, 12, 1, "b"),
        ev.UnitStarted(1.0, "perplexity/0", "a"), ev.MethodStarted(1.0, "perplexity/0", "knorm"),
        ev.UnitStarted(2.0, "perplexity/1", "b"), ev.MethodStarted(2.0, "perplexity/1", "int8"),
    ]  # fmt: skip
    state = replay(both)
    assert {unit: one.method for unit, one in state.in_flight.items()} == {"perplexity/0": "knorm", "perplexity/1": "int8"}
    assert (state.current_unit, state.current_method) == ("perplexity/1", "int8")
    assert [state.methods[label].status for label in METHODS] == ["waiting", "running", "running"]
    died = apply(state, ev.WorkerDied(3.0, "SIGSEGV", worker="b"))
    assert list(died.in_flight) == ["perplexity/0"]
    assert (died.workers, died.methods["knorm"].status, died.methods["int8"].status) == ({"a": 11}, "running", "waiting")


def test_a_failed_row_stays_failed_though_another_worker_goes_on_with_it() -> None:
    failing = told("perplexity", 0, Story(failing="knorm"))
    state = replay([started(), *failing, *told("perplexity", 1, Story())])
    assert (state.methods["knorm"].status, state.methods["knorm"].units_done) == ("failed", 2)


def test_clocks_that_lie_apart_count_no_time_twice() -> None:
    assert replay([started(), *(ev.NoteWritten(at, "") for at in (5.0, 3.0, 5.0, 4.0, 6.0))]).elapsed == 6.0


def test_the_end_of_a_unit_that_was_never_planned_is_refused() -> None:
    with pytest.raises(results.ResultError, match="'perplexity/9', which its plan does not have"):
        replay([started(), ev.UnitFinished(1.0, "perplexity/9", 1.0)])


# Evaluators by themselves -------------------------------------------------------------------


def test_the_first_point_of_memory_is_the_one_asked_for_first() -> None:
    points = {f"batch={batch},context=100": weighed(batch, resident_bytes=batch) for batch in (1, 2, 8)}
    turned = dict(reversed(points.items()))
    for asked, first in (("8+1+2", 8), ("1+2+8", 1), ("2+8", 2)):
        one, other = (Memory(batch=asked).summarise({"m": of}, None)["m"] for of in (points, turned))
        assert one == other
        assert one.fields["memory_bytes"] == first
        assert list(one.fields["memory_points"]) == list(other.fields["memory_points"])


def test_a_search_says_the_same_in_any_order() -> None:
    tried = measured("capacity", 1, "knorm")
    turned = dict(reversed(tried.items()))
    assert probes.summary(turned) == probes.summary(tried)
    assert probes.found_in(turned) == probes.found_in(tried)


def test_the_last_repeat_is_the_last_though_there_are_more_than_ten() -> None:
    records = {f"batch=1,context=64/repeat={i}": {**repeat(1, 64, 1.0), "read_path": f"path {i}"} for i in range(12)}
    (at,) = speeds.by_point(dict(reversed(records.items()))).values()
    assert at.read_path == "path 11"
