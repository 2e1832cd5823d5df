"""Suites: what they stand for, what replaces their parts, and that a run's specification holds the parts alone."""

from __future__ import annotations

import orjson
import pytest

from kvbench.cli import main
from kvbench.cli.question import spec_of
from kvbench.engine.plan import complete
from kvbench.errors import UsageError
from kvbench.evaluators.base import build
from kvbench.evaluators.registered import EVALUATORS
from kvbench.spec import EvaluatorSpec, RunSpec, split_list, suites

ESSENTIAL = ["perplexity", "speed", "memory"]


def expanded(text: str) -> list[str]:
    return [e.label for e in suites.expand(map(EvaluatorSpec.parse, split_list(text)), EVALUATORS.names())]


def test_each_suite_holds_the_one_before() -> None:
    essential, recommended, extended = (expanded(name) for name in ("essential", "recommended", "extended"))
    assert essential == ESSENTIAL
    assert recommended == [*ESSENTIAL, "reconstruction", "attention_similarity", "spectrum"]
    assert extended[: len(recommended)] == recommended
    assert {e.partition(":")[0] for e in extended[len(recommended) :]} == {"needle", "tasks", "longbench", "ruler", "drift"}


@pytest.mark.parametrize("name", suites.SUITES)
def test_every_part_can_be_built(name: str) -> None:
    for spec in suites.members(name):
        assert build(EVALUATORS.load(spec.name), spec, "evaluator").name == spec.name


def test_what_is_asked_for_by_name_replaces_a_suites_own_before_and_after_it() -> None:
    assert expanded("essential,needle") == [*ESSENTIAL, "needle"]
    assert "tasks:questions=20" in expanded("extended,tasks:questions=20")
    assert "tasks:missing=skip" not in expanded("extended,tasks:questions=20")
    assert expanded("speed:batch=1+8,essential") == ["speed:batch=1+8", "perplexity", "memory"]
    assert expanded("essential,recommended") == expanded("recommended")
    assert expanded("memory,memory") == ["memory"]


@pytest.mark.parametrize(("text", "said"), [("essential:batch=8", "takes no parameters"), ("speed:batch=1,speed:batch=8", "twice")])
def test_what_cannot_be_meant_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        expanded(text)
    assert caught.value.hint


def test_a_runs_specification_holds_the_plain_evaluators() -> None:
    spec = spec_of({"methods": "knorm", "evals": "essential,speed:batch=8"})
    assert [e.label for e in spec.evaluators] == ["perplexity", "speed:batch=8", "memory"]
    assert RunSpec.from_plain(spec.to_plain()) == complete(spec) == spec
    assert [e.label for e in complete(RunSpec(evaluators=(EvaluatorSpec("essential"),))).evaluators] == ESSENTIAL
    assert [e.label for e in complete(RunSpec()).evaluators] == ESSENTIAL


def test_list_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "evaluators", "--format", "json"]) == 0
    entries = {entry["name"]: entry for entry in orjson.loads(capsys.readouterr().out)}
    assert {name: entries[name]["evaluators"] for name in suites.SUITES} == {name: expanded(name) for name in suites.SUITES}
    assert entries["speed"]["family"] == "evaluators"
    assert main(["list", "evaluators"]) == 0
    assert "perplexity, speed, memory" in capsys.readouterr().out
