"""Equal bytes: budgets are read, met by what is really stored, kept over a resume, and shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from sessions import told_by

from kvbench.budgeting.expected import ShapeScale, Unknown
from kvbench.budgeting.solver import Solution, solve
from kvbench.budgeting.weighing import PromptScale
from kvbench.displays import ending
from kvbench.engine.journal import SCHEMA
from kvbench.engine.plan import complete, plan, resolve_methods
from kvbench.errors import UsageError
from kvbench.evaluators.memory import Memory
from kvbench.instruments.session import Session
from kvbench.instruments.tiny import make_tiny_config
from kvbench.methods.base import METHODS, expand, resolve
from kvbench.models.shape import shape_of
from kvbench.models.weights import silent
from kvbench.record import events as ev
from kvbench.record import results
from kvbench.record.state import RunState, apply, replay
from kvbench.spec import EvaluatorSpec, MethodSpec, ModelSpec, RunSpec
from kvbench.spec.budgets import TOLERANCE, Budget, Range, Settings, is_met, parse_budgets, widest_codes

CONTEXT = 192
BUDGETS = ("1.25x", "1.5x", "3x", "8x")
OUTSIDE = {"baseline", "kvpress"}
"""What budgets are counted from, and what needs a package that is not here."""
DIALS = sorted(name for name in METHODS.names() if name not in OUTSIDE and METHODS.load(name).dial is not None)


COUPLED = {"minicache", "pyramidkv", "hybrid"}
"""Whose layers are not alike: on four of them, where two would be all others need."""


def question(methods: Sequence[str], layers: int = 2, **changes: Any) -> RunSpec:
    """A run on a tiny model with heads of 64."""
    config = {**make_tiny_config("qwen2"), "head_dim": 64, "num_hidden_layers": layers}
    model = ModelSpec("tiny", "float32", "bfloat16", "cpu", random_weights=True, config=config)
    spec = RunSpec(
        model=model, methods=tuple(map(MethodSpec.parse, methods)), evaluators=(EvaluatorSpec("memory"),), samples=1, context=CONTEXT,
        continuation=16,
    )  # fmt: skip
    return complete(spec.with_changes(**changes))


# -- how budgets are written


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("4x", "4x"), ("2.50X", "2.5x"), ("1x", "1x"), ("14KiB/token", "14KiB/token"), (" 512 b/token ", "512B/token")],
)
def test_budgets_have_one_form_in_labels(text: str, canonical: str) -> None:
    assert Budget.parse(text).text == canonical
    assert MethodSpec.parse(f"kivi:group=32@{text}").label == f"kivi:group=32@{canonical}"


@pytest.mark.parametrize("text", ["4", "x", "0.5x", "-4x", "14KB/token", "14KiB", "0B/token", "4x8", "half", ""])
def test_what_is_no_budget_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as error:
        MethodSpec.parse(f"snapkv@{text}")
    assert "x" in str(error.value.hint)


def test_a_list_of_budgets_has_each_once() -> None:
    assert [b.text for b in parse_budgets("2x, 4x,2.0x")] == ["2x", "4x"]
    with pytest.raises(UsageError, match="names none"):
        parse_budgets(" , ")


def test_targets_are_bytes_of_the_whole_sequence() -> None:
    assert Budget.parse("4x").target(baseline=4096, tokens=8) == 1024
    assert Budget.parse("0.5KiB/token").target(baseline=4096, tokens=8) == 4096
    assert Budget.parse("2x").measure(1024, baseline=4096, tokens=8) == "4x"
    assert Budget.parse("1KiB/token").measure(4096, baseline=9999, tokens=8) == "0.5KiB/token"


def test_a_specification_survives_with_its_budget() -> None:
    spec = question(["snapkv+kivi:bits=2@4x"], budget="8x")
    assert [m.label for m in spec.methods] == ["baseline", "snapkv+kivi:bits=2@4x", "random@8x"]
    assert RunSpec.from_plain(spec.to_plain()) == spec


# -- which rows there are


def test_every_method_is_run_at_every_budget_the_baseline_once() -> None:
    spec = question(["snapkv", "kivi:bits=2@3x"], budget="2x,4x")
    assert [m.label for m in spec.methods] == ["baseline", "kivi:bits=2@3x", "random@2x", "snapkv@2x", "random@4x", "snapkv@4x"]
    assert complete(spec) == spec


def test_all_at_a_budget_is_every_method_once() -> None:
    labels = [spec.label for spec in expand(["all"], "4x")]
    assert labels.count("kivi@4x") == 1
    assert not [label for label in labels if label.startswith("kivi:")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": "0.5x"}, "at least 1x"),
        ({"budget": "4"}, "is not a budget"),
        ({"budget": "4x", "protocol": "streaming"}, "after the context"),
        ({"methods": ["snapkv@4x"], "protocol": "streaming"}, "after the context"),
        ({"methods": ["baseline@4x"]}, "counted from"),
    ],
)
def test_bad_questions_are_refused_before_a_model_is_loaded(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan(question(**{"methods": ["snapkv"], **changes}))


def test_outside_a_run_there_is_no_length_to_meet_a_budget_at(tiny_model: Callable[..., Any]) -> None:
    import kvbench
    from kvbench.instruments.verify import verify

    with pytest.raises(UsageError, match="at a run's length"):
        kvbench.make_cache(tiny_model("llama"), "snapkv@4x")
    with pytest.raises(UsageError, match="at a run's length"):
        verify("snapkv@4x", silent)


def test_a_preset_may_hold_a_budget(tmp_path: Any) -> None:
    from kvbench.cli.question import spec_of

    preset = tmp_path / "mine.toml"
    preset.write_text('methods = "snapkv"\nbudget = "2x,4x"\n')
    own, flagged = spec_of({"preset": str(preset)}), spec_of({"preset": str(preset), "budget": "8x"})
    assert [m.label for m in own.methods] == ["baseline", "random@2x", "snapkv@2x", "random@4x", "snapkv@4x"]
    assert [m.label for m in flagged.methods] == ["baseline", "random@8x", "snapkv@8x"]


# -- dials


def test_what_the_user_gave_is_not_turned() -> None:
    assert Range("rank", 8, 1).without(["rank"]) is None
    dial = widest_codes(4, 2, fine=Range("residual", "context", 0, whole=True))
    assert dial.choices[0] == {"k_bits": 4, "v_bits": 4}
    assert dial.without(["bits"]) == dial.fine
    held = dial.without(["k_bits"])
    assert isinstance(held, Settings)
    assert held.choices == ({"v_bits": 4}, {"v_bits": 2})
    assert dial.without(["bits", "residual"]) is None


@pytest.mark.parametrize("name", DIALS)
def test_dials_turn_parameters_that_there_are(name: str) -> None:
    cls = METHODS.load(name)
    assert cls.dial is not None
    assert set(cls.dial.parameters) <= {known for known, _, _ in cls.parameters()}


# -- what is met


@cache
def opened(layers: int) -> tuple[Session, PromptScale]:
    spec = question(sorted(COUPLED) if layers > 2 else [*DIALS, "snapkv+kivi"], layers)
    session = Session.open(spec, resolve_methods(spec), silent)
    return session, PromptScale.of(session, list(session.methods))


@pytest.fixture
def session() -> Session:
    return opened(2)[0]


@pytest.fixture
def met() -> Callable[[str], Solution]:
    return lambda text: solve_on(2, text)


def solve_on(layers: int, text: str) -> Solution:
    session, scale = opened(layers)
    return solve(MethodSpec.parse(text), session.spec, session.loaded.shape, scale)


@pytest.mark.parametrize("name", DIALS)
def test_every_method_with_a_dial_meets_budgets_within_two_percent(name: str) -> None:
    """What the run's own memory evaluator then counts is what was asked for; what is out of reach is said."""
    layers = 4 if name in COUPLED else 2
    session, found = opened(layers)[0], {budget: solve_on(layers, f"{name}@{budget}") for budget in BUDGETS}
    methods = {f"{name}@{budget}": solution.method for budget, solution in found.items() if solution.error is None}
    assert methods, [solution.error for solution in found.values()]
    context = told_by(Memory(), replace(session, methods={"baseline": session.methods["baseline"], **methods}))
    for label, method in methods.items():
        budget, (record,) = label.partition("@")[2], context.records[label].values()
        factor = record["baseline_bytes"] / record["stored_bytes"]
        assert abs(1 / factor - 1 / float(budget[:-1])) <= TOLERANCE / float(budget[:-1]), (label, factor)
        assert method.label == label
        assert record["stored_bytes"] == found[budget].stored
    for solution in found.values():
        assert (solution.error is None) == is_met(solution.stored, solution.target)
        assert solution.error is None or solution.error.startswith("cannot store ")


def test_solving_again_gives_the_same(met: Callable[[str], Solution]) -> None:
    for text in ("snapkv@4x", "kivi@2x", "int4@3x"):
        assert met(text) == met(text)


def test_only_what_is_free_is_turned(met: Callable[[str], Solution]) -> None:
    assert set(met("kivi:bits=2@3x").turned) == {"residual"} or "group" in met("kivi:bits=2@3x").turned
    assert "k_bits" not in met("int8:k_bits=4@3x").turned
    fixed = met("streaming_llm:compression_ratio=0.75@4x")
    assert (fixed.turned, fixed.error) == ({}, None)
    assert met("streaming_llm:0.5@4x").error == "cannot store 4x less: it stores 2x and has nothing left to turn"


def test_numbers_that_other_parameters_refuse_are_passed_over(met: Callable[[str], Solution]) -> None:
    """Two codes of four bits fill a byte, so ranks are even."""
    found = met("v_lowrank:bits=4@1.7x")
    assert found.error is None
    assert int(found.turned["rank"]) % 2 == 0


def test_of_a_composition_the_eviction_is_turned_or_else_the_store(met: Callable[[str], Solution]) -> None:
    both = met("snapkv+int4@8x")
    assert (list(both.turned), both.error) == (["compression_ratio"], None)
    store = met("snapkv:compression_ratio=0.5+int4@8x")
    assert all(name.startswith("+") for name in store.turned)
    assert store.error is None
    assert store.method.label == "snapkv:compression_ratio=0.5+int4@8x"


def test_what_cannot_be_met_names_the_nearest(met: Callable[[str], Solution]) -> None:
    far = met("v_lowrank@8x")
    assert far.turned == {"rank": 1}
    assert far.error == "cannot store 8x less: the nearest is 1.97x with rank=1"
    above = met("snapkv@1MiB/token")
    assert above.error is not None
    assert "the nearest is" in above.error


def test_bytes_for_each_token_count_all_layers(session: Session, met: Callable[[str], Solution]) -> None:
    found = met("snapkv@1KiB/token")
    assert found.error is None
    assert found.target == 1024 * CONTEXT
    assert session.runner.compress(found.method, PromptScale.of(session, ["snapkv"]).prompt).ledger().stored == found.stored


class Cliff:
    """A method whose bytes are decided by a threshold on what it reads: they fall steeply, between two flats."""

    tokens, baseline = 1000, 1_000_000

    def __init__(self, misled: bool = False) -> None:
        self.misled, self.trials = misled, 0

    def weigh(self, method: Any) -> int:
        self.trials += 1
        ratio = method.compression_ratio
        return round(1_000_000 * min(1.0, max(0.01, 1 - (ratio - 0.7) * 50)))

    def estimate(self, method: Any) -> int:
        return 123 if self.misled else self.weigh(method)


@pytest.mark.parametrize("misled", [False, True])
def test_a_steep_fall_between_flats_is_found(misled: bool) -> None:
    spec = question(["knorm@4x"])
    cliff = Cliff(misled)
    found = solve(spec.methods[-1], spec, shape_of(spec.model.config or {}), cliff)
    assert found.error is None
    assert abs(found.stored - 250_000) <= TOLERANCE * 250_000
    assert cliff.trials < 60


def test_the_model_s_shape_is_enough_where_nothing_is_calibrated() -> None:
    """The preview's settings are the run's."""
    spec = question(["snapkv@4x", "int4@2x", "hybrid_5x@3x"])
    shape = shape_of(spec.model.config or {})
    scale = ShapeScale(shape, CONTEXT, "bfloat16")
    session = Session.open(spec, resolve_methods(spec), silent)
    ours = PromptScale.of(session, list(session.methods))
    for method in spec.methods:
        if method.budget is not None:
            assert solve(method, spec, shape, scale).turned == solve(method, spec, shape, ours).turned


def test_the_preview_shows_what_would_be_turned(capsys: pytest.CaptureFixture[str]) -> None:
    from kvbench.cli import main

    assert main(["run", "--dry-run", "--methods", "snapkv,v_lowrank", "--budget", "4x"]) == 0
    told = capsys.readouterr().out
    assert "compression_ratio=0.7" in told
    assert "cannot store 4x less" in told


# -- in a run


class Told(list[ev.Event]):
    """Stands in for the pipe to the supervisor."""

    def __call__(self, event: ev.Event) -> None:
        self.append(event)

    def stage(self, stage: str, done: int = 0, total: int = 0) -> None:
        self.append(ev.StageEntered(0.0, stage, done, total))


@pytest.fixture(scope="module")
def run() -> tuple[ev.RunStarted, Told]:
    """A whole run with one method that meets its budget and one that cannot."""
    from kvbench.engine.worker import work

    made = plan(question(["knorm", "v_lowrank"], budget="4x"))
    started = ev.RunStarted(0.0, made.spec.to_plain(), [u.to_plain() for u in made.units], list(made.methods), "0", SCHEMA)
    told = Told()
    work(replay([started]), told)  # type: ignore[arg-type]
    return started, told


@pytest.fixture
def state(run: tuple[ev.RunStarted, Told]) -> RunState:
    """As it is read back from the journal."""
    lines = [ev.encode(event) for event in (run[0], *run[1], ev.RunFinished(9.0, "result.json"))]
    return replay(map(ev.decode, lines))


def test_a_result_has_what_was_asked_and_what_was_met(state: RunState) -> None:
    assert {label: row.status for label, row in state.methods.items()} == {
        "baseline": "done", "random@4x": "done", "knorm@4x": "done", "v_lowrank@4x": "failed",
    }  # fmt: skip
    result = results.build(state, "mine")
    rows = {row["method"]: row for row in result["results"]}
    knorm = rows["knorm@4x"]
    assert (knorm["budget"], knorm["target_compression_factor"], knorm["budget_met"]) == ("4x", 4.0, True)
    assert abs(knorm["stored_bytes"] - knorm["target_stored_bytes"]) <= TOLERANCE * knorm["target_stored_bytes"]
    assert knorm["compression_factor"] == pytest.approx(4.0, rel=TOLERANCE)
    assert list(knorm["budget_solved"]["parameters"]) == ["compression_ratio"]
    assert (rows["v_lowrank@4x"]["error_kind"], rows["v_lowrank@4x"]["budget_met"]) == ("budget", False)
    assert "budget" not in rows["baseline"]
    assert results.to_state(result).methods["knorm@4x"].budget == state.methods["knorm@4x"].budget


def test_the_table_says_what_was_turned_and_what_cannot_be_met(state: RunState) -> None:
    text = ending.render(state)
    assert "knorm: 4x compression_ratio=0.7" in text
    assert "v_lowrank@4x failed: cannot store 4x less: the nearest is 1.97x with rank=1" in text
    over = state.methods["knorm@4x"].budget
    assert over is not None
    swollen = apply(state, replace(over, target_bytes=over.target_bytes / 2))
    assert "knorm@4x stores 200% of its budget" in ending.render(swollen)


def test_a_resumed_run_takes_the_budgets_that_were_solved(run: tuple[ev.RunStarted, Told]) -> None:
    from kvbench.engine.worker import work

    started, told = run
    solved = [event for event in told if isinstance(event, ev.BudgetSolved)]
    assert len(solved) == 3
    changed = [replace(event, parameters={"compression_ratio": 0.9}) if event.method == "knorm@4x" else event for event in solved[:2]]
    state = replay([started, *changed, ev.RunResumed(5.0, 0)])
    again = Told()
    work(state, again)  # type: ignore[arg-type]
    assert [event.method for event in again if isinstance(event, ev.BudgetSolved)] == [solved[2].method]
    stored = next(event.data["stored_bytes"] for event in again if isinstance(event, ev.RecordMade) and event.method == "knorm@4x")
    assert stored < solved[0].baseline_bytes / 9  # with what the journal says, not with what would be found again


def test_a_row_that_cannot_meet_its_budget_stays_failed_over_a_resume(run: tuple[ev.RunStarted, Told]) -> None:
    started, told = run
    solved = [event for event in told if isinstance(event, ev.BudgetSolved)]
    state = replay([started, *solved, ev.RunResumed(5.0, 0)])
    assert (state.methods["v_lowrank@4x"].status, state.methods["v_lowrank@4x"].error_kind) == ("failed", "budget")


def test_a_method_that_breaks_while_it_is_weighed_is_its_own_row_s_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvbench.engine import worker
    from kvbench.methods.knorm import KNorm

    made = plan(question(["knorm"], budget="2x"))
    started = ev.RunStarted(0.0, made.spec.to_plain(), [u.to_plain() for u in made.units], list(made.methods), "0", SCHEMA)

    def broken(self: Any, tokens: Any) -> Any:
        raise RuntimeError("it broke")

    monkeypatch.setattr(KNorm, "score", broken)
    told = Told()
    worker.work(replay([started]), told)  # type: ignore[arg-type]
    state = replay([started, *told])
    assert (state.methods["knorm@2x"].status, state.methods["random@2x"].status) == ("failed", "done")


def test_the_dashboard_knows_rows_with_budgets() -> None:
    from kvbench.figures.colours import method_colours
    from kvbench.metrics.apart import is_control

    assert is_control("random@4x")
    assert not is_control("snapkv@4x")
    colours = method_colours(["snapkv", "snapkv@2x", "snapkv@4x"], dark=True)
    assert len(set(colours.values())) == 3


def test_a_solved_method_keeps_the_label_that_was_asked_for() -> None:
    method = resolve(MethodSpec.parse("snapkv@4x"), RunSpec(), {"compression_ratio": 0.9})
    assert (method.label, method.compression_ratio) == ("snapkv@4x", 0.9)  # type: ignore[attr-defined]


def test_a_scale_without_a_model_says_what_it_cannot_know() -> None:
    spec = question(["v_lowrank:energy=0.9@1.5x"])
    with pytest.raises(Unknown):
        solve(spec.methods[-1], spec, shape_of(spec.model.config or {}), ShapeScale(shape_of(spec.model.config or {}), CONTEXT, "bfloat16"))
