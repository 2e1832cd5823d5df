"""The plan: the same every time, the audit first, and no combination that measures nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from stub_fixtures import stub_spec, stubbed  # noqa: F401

from kvbench.engine.plan import complete, plan, units_left
from kvbench.errors import CorpusError, UnknownName, UnsupportedModel, UsageError
from kvbench.instruments.tiny import make_tiny_config
from kvbench.record.state import RunState
from kvbench.spec import CorpusSpec, EvaluatorSpec, MethodSpec, ModelSpec, RunSpec, Unit

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures("stubbed")]


def test_the_audit_comes_first_asked_for_or_not() -> None:
    spec = stub_spec(samples=3)
    assert [u.id for u in plan(spec).units] == ["audit/0", "counting/0", "counting/1", "counting/2"]
    asked = spec.with_changes(evaluators=(*spec.evaluators, EvaluatorSpec("audit")))
    assert [u.id for u in plan(asked).units] == [u.id for u in plan(spec).units]


def test_every_unit_holds_every_method_and_the_baseline_leads() -> None:
    made = plan(stub_spec(methods="knorm int8 baseline"))
    assert list(made.methods) == ["baseline", "knorm", "int8"]
    assert all(u.methods == tuple(made.methods) for u in made.units)


def test_a_plan_made_again_is_the_same() -> None:
    assert plan(stub_spec()) == plan(stub_spec())


def test_controls_and_defaults_are_completed() -> None:
    spec = complete(RunSpec(methods=(MethodSpec.parse("kivi:bits=2"),), samples=4))
    assert [m.label for m in spec.methods] == ["baseline", "random", "kivi:bits=2"]
    assert [e.name for e in spec.evaluators] == ["perplexity", "speed", "memory"]
    assert complete(spec) == spec
    assert len(complete(RunSpec()).methods) > 10


@pytest.mark.parametrize("methods", ["knorm", ""])
def test_without_a_baseline_there_is_no_plan(methods: str) -> None:
    with pytest.raises(UsageError, match="lack 'baseline'"):
        plan(stub_spec(methods=methods))


def test_unknown_names_and_values_are_refused() -> None:
    spec = stub_spec()
    with pytest.raises(UnknownName, match="knorm"):
        plan(stub_spec(methods="baseline knrom"))
    with pytest.raises(UnknownName, match="counting"):
        plan(spec.with_changes(evaluators=(EvaluatorSpec("countin"),)))
    with pytest.raises(UnknownName):
        plan(stub_spec("secs=3"))
    with pytest.raises(UsageError, match="--samples is 0"):
        plan(spec.with_changes(samples=0))


def test_evaluators_refuse_what_they_cannot_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    from stub_engine import Counting

    monkeypatch.setattr(Counting, "protocols", ("prefill",))
    with pytest.raises(UsageError, match="cannot follow protocol 'streaming'"):
        plan(stub_spec().with_changes(protocol="streaming"))
    monkeypatch.setattr(Counting, "needs_weights", True)
    with pytest.raises(UsageError, match="random weights"):
        plan(stub_spec().with_changes(model=ModelSpec(random_weights=True)))


def test_a_text_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stub_engine import Counting

    monkeypatch.setattr(Counting, "needs_text", True)
    with pytest.raises(UnknownName, match="wikitext2"):
        plan(stub_spec().with_changes(corpus=CorpusSpec("wikitext")))
    with pytest.raises(CorpusError, match="not there"):
        plan(stub_spec().with_changes(corpus=CorpusSpec(str(tmp_path / "none.txt"))))


def test_a_known_config_is_checked_before_anything_is_loaded() -> None:
    config = make_tiny_config("qwen2")
    spec = stub_spec(methods="baseline kivi:bits=2,group=12,residual=24").with_changes(model=ModelSpec(config=config))
    with pytest.raises(UsageError, match="kivi"):
        plan(spec)  # groups of 12 channels do not fill a head of 16
    latent = replace(spec.model, config={**config, "kv_lora_rank": 8})
    with pytest.raises(UnsupportedModel):
        plan(spec.with_changes(model=latent))


def test_units_left_keeps_the_order() -> None:
    units = {f"u{i}": Unit(f"u{i}", "counting", i, ()) for i in range(4)}
    state = RunState(units=units, done=frozenset({"u1"}), lost={"u2": "crash"})
    assert [u.id for u in units_left(state)] == ["u0", "u3"]


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys; from stub_fixtures import stub_spec; import stub_engine; stub_engine.install(); from kvbench.engine.plan import plan;"
        "import kvbench.engine.supervisor; plan(stub_spec()); sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    here = Path(__file__).parent
    found = {"PYTHONPATH": os.pathsep.join([str(here), str(here / "stubs"), *sys.path])}
    assert subprocess.run([sys.executable, "-c", code], env=found, check=False).returncode == 0
