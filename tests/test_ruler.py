"""RULER: the harness's samples and metrics through our path, what is handed to it, the hidden question, its tables."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sessions import opened, told_by

from kvbench.errors import CorpusError, UnknownName, UsageError
from kvbench.evaluators.base import build
from kvbench.evaluators.ruler import LLAMA2_AT_4K, Ruler, effective_context
from kvbench.figures import Grid, Table
from kvbench.harness.ruler_samples import DoesNotFit, Made, Supplies, make
from kvbench.harness.ruler_tasks import Cell, check_tasks, questions_of_made, score_of, sentence_splitter
from kvbench.models.weights import silent
from kvbench.spec import CorpusSpec, EvaluatorSpec, MethodSpec, RunSpec

if TYPE_CHECKING:
    from kvbench.models.loading import LoadedModel

NEEDLES = ("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
           "niah_multivalue", "niah_multiquery")  # fmt: skip
MAKERS = {
    **{name: f"niah_utils.{name}" for name in NEEDLES}, "vt": "vt_utils.get_vt_dataset", "cwe": "cwe_utils.get_cw_dataset",
    "fwe": "fwe_utils.fwe_download", "qa_squad": "qa_utils.get_squad",
}  # fmt: skip


class Words:
    """A tokenizer of one token a word and one a mark."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(re.findall(r"\w+|[^\w\s]", text))))}

    def count(self, text: str) -> int:
        return len(self(text)["input_ids"])


def supplies(folder: Path | None = None, seed: int = 0) -> Supplies:
    words = [word for i in range(2000) for word in (f"Filler{i}", "is", "here.")]
    return Supplies(Words(), words, sentence_splitter()[0], seed, folder)


@pytest.mark.parametrize("task", [*NEEDLES, "fwe"])
@pytest.mark.parametrize("length", [400, 1024])
def test_samples_hold_what_is_asked_and_fit(task: str, length: int) -> None:
    """Needles, filler around them in any length, and the answer's tokens within the length (fwe counts none, as in the harness)."""
    made = make(MAKERS[task], length, 3, supplies())
    assert len(made.docs) == 3
    for doc in made.docs:
        context = doc["input"][: made.context_end(doc["input"])]
        assert doc["outputs"]
        assert all(wanted in context for wanted in doc["outputs"])
        tokens = Words().count(doc["input"])
        assert tokens + (0 if task == "fwe" else 128) <= length
        assert tokens > (length - 128) / 2  # there is a haystack, also where the harness's steps of 500 words are too coarse
    assert len({doc["input"] for doc in made.docs}) == 3


def test_a_unit_done_again_asks_the_same_and_nothing_else_is_touched() -> None:
    """Seeds are our own: no global state is drawn from or set, and the harness's slow module is not even imported."""
    before, numbers = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    for task in ("niah_multiquery", "vt", "cwe", "fwe"):
        first, again, other = (make(MAKERS[task], 1024, 2, supplies(seed=seed)).docs for seed in (0, 0, 1))
        assert first == again
        assert first != other
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == numbers  # type: ignore[index, union-attr]
    assert "lm_eval.tasks.ruler.prepare_niah" not in sys.modules
    assert getattr(sys.modules.get("nltk"), "__file__", None)


@pytest.mark.parametrize(("task", "length"), [("vt", 256), ("cwe", 256), ("niah_single_1", 100), ("niah_multiquery", 200)])
def test_what_leaves_no_room_is_said_rather_than_tried_for_ever(task: str, length: int) -> None:
    with pytest.raises(DoesNotFit, match=f"no room in {length} tokens"):
        make(MAKERS[task], length, 2, supplies())


def squad(folder: Path) -> Path:
    def asked(i: int) -> dict[str, Any]:
        return {"question": f"Where is {i}?", "is_impossible": False, "answers": [{"text": f"river {i}"}]}

    paragraphs = [{"context": f"City {i} lies at river {i}.", "qas": [asked(i)]} for i in range(30)]
    (folder / "squad").mkdir()
    (folder / "squad" / "dev-v2.0.json").write_text(json.dumps({"data": [{"paragraphs": [p]} for p in paragraphs]}))
    return folder


def test_question_sets_come_from_the_mirror(tmp_path: Path) -> None:
    made = make(MAKERS["qa_squad"], 1024, 2, supplies(squad(tmp_path)))
    assert [doc["outputs"] for doc in made.docs] == [["river 0"], ["river 1"]]
    assert made.docs[0]["input"][made.context_end(made.docs[0]["input"]) :].endswith("Question: Where is 0?")
    (tmp_path / "squad" / "dev-v2.0.json").write_text("{broken")
    with pytest.raises(CorpusError, match=r"dev-v2.0.json' cannot be read"):
        make(MAKERS["qa_squad"], 1024, 2, supplies(tmp_path))


def made_of(*outputs: str, length: int = 512) -> Made:
    doc = {
        "index": 0,
        "input": "Text: needles.\nWhat is it?",
        "outputs": list(outputs),
        "length": 9,
        "max_length": length,
        "gen_prefix": "It is",
    }
    return Made([doc], "\nWhat")


@pytest.mark.parametrize("task", ["niah_single_1", "vt", "qa_squad"])
@pytest.mark.parametrize(
    ("outputs", "answer", "expected"),
    [
        (["4711"], " 4711.", 1.0),
        (["4711", "0815"], "4711, and no more", 0.5),
        (["Alpha", "beta", "Gamma"], "ALPHA beta gamma", 1.0),  # case does not matter
        (["4711"], "", 0.0),
        (["4711"], "I'm sorry, but I cannot help with that.", 0.0),
        (["北京", "上海"], "是北京。", 0.5),
        (["ПАРИЖ"], "это париж", 1.0),
        (["4711"], "47\n11", 0.0),
    ],
)
def test_scores_are_the_harnesss_and_as_counted_by_hand(task: str, outputs: list[str], answer: str, expected: float) -> None:
    """The share of the wanted strings that the answer holds; at any length, not only at those that the harness lists."""
    for length in (512, 4096):
        assert score_of(questions_of_made(task, made_of(*outputs, length=length))[0], [answer]) == expected


def test_the_question_and_the_answers_beginning_come_after_the_context() -> None:
    for task in ("niah_single_2", "vt", "cwe", "fwe"):
        made = make(MAKERS[task], 1024, 1, supplies())
        asked = questions_of_made(task, made)[0]
        context, rest = asked.prompts[0][: asked.ends[0]], asked.prompts[0][asked.ends[0] :]
        assert rest.startswith(made.question)
        assert rest.endswith(made.docs[0]["gen_prefix"])
        question = rest.strip().partition("?")[0]
        assert len(question) > 20
        assert question not in context


def spec_of(folder: Path | None = None, **options: Any) -> RunSpec:
    evaluators = (EvaluatorSpec("ruler", tuple(options.items())),)
    methods = (MethodSpec("baseline"), MethodSpec("snapkv"))
    return RunSpec(
        evaluators=evaluators, methods=methods, context=512, continuation=8, samples=1, corpus=CorpusSpec(data_dir=folder and str(folder))
    )


def evaluator_of(spec: RunSpec) -> Ruler:
    built: Ruler = build(Ruler, spec.evaluators[0], "evaluator")
    return built


def test_an_unknown_task_gives_the_nearest() -> None:
    check_tasks(["niah_single_1", "qa_hotpot", "vt"])
    with pytest.raises(UnknownName, match="did you mean niah_multikey_1"):
        check_tasks(["niah_multikey1"])


def test_a_length_beyond_the_models_positions_is_refused_before_the_run() -> None:
    spec = spec_of(lengths="512+9000")
    with pytest.raises(UsageError, match="9,000 tokens, beyond this model's 8,192 positions"):
        evaluator_of(spec).check_length(spec, 8192)
    assert evaluator_of(spec_of()).longest(spec) == 512  # the run's context


def test_effective_context_is_the_longest_length_that_passes() -> None:
    assert effective_context({"512": 0.9, "1024": 0.856, "2048": 0.85}, LLAMA2_AT_4K) == 1024
    assert effective_context({"512": 0.8, "1024": 0.9}, LLAMA2_AT_4K) == 1024
    assert effective_context({"512": 0.8}, LLAMA2_AT_4K) is None


def records_of(scores: Mapping[tuple[str, int], list[float]]) -> dict[str, Any]:
    return {
        f"{task}/{length}/{i}": {"task": task, "length": length, "metrics": {"score": score}, "stored_bytes": 1, "baseline_bytes": 2}
        for (task, length), of in scores.items() for i, score in enumerate(of)
    }  # fmt: skip


def test_tables_and_grids_are_of_the_records() -> None:
    """By length over tasks, by task over lengths, and each method's own grid; cells that are not measured yet are none."""
    records = {
        "baseline": records_of({("vt", 1024): [1.0, 1.0], ("vt", 512): [1.0, 1.0], ("fwe", 512): [1.0, 0.5]}),
        "snapkv": records_of({("vt", 512): [1.0, 0.0], ("fwe", 512): [0.0, 0.0]}),
    }
    evaluator = evaluator_of(spec_of(lengths="512+1024", samples=2, tasks="vt+fwe"))
    by_length, by_task, *grids = evaluator.figures(records, "baseline", {"question": "hidden", "left_out": {"cwe 512": "no room"}})
    assert isinstance(by_length, Table)
    assert isinstance(by_task, Table)
    assert [heading for heading in by_length.headings if "Δ" not in heading] == ["method", "512 score %", "1024 score %", "effective"]
    assert by_length.rows[0][1].startswith("87.5 ±")
    assert [row[-1] for row in by_length.rows] == ["1,024", "–"]
    assert by_length.rows[1][1].startswith("25.0 ±")
    assert "left out: cwe 512 (no room)" in by_length.notes
    assert by_task.name == "ruler_tasks"
    assert [heading for heading in by_task.headings if "%" in heading] == ["vt score %", "fwe score %"]
    assert [(g.method, g.rows, g.columns, g.values) for g in grids if isinstance(g, Grid)] == [
        ("baseline", ["vt", "fwe"], ["512", "1,024"], [[1.0, 1.0], [0.75, None]]),
        ("snapkv", ["vt", "fwe"], ["512"], [[0.5], [0.0]]),
    ]
    found = evaluator.summarise(records, "baseline")["baseline"]
    assert found.fields["headline"] == {"ruler": (0.875 + 1.0) / 2}
    assert found.fields["ruler_effective_context"] == 1024
    assert [(m.metric, m.point, m.value) for m in found.measured] == [("score", "length=512", 0.875), ("score", "length=1024", 1.0)]


@pytest.mark.model
def test_a_run_on_the_embedded_model(embedded_model: LoadedModel) -> None:
    """What fits is asked of both methods, what does not is left out with its reason, and prompts are within their length."""
    spec = spec_of(tasks="niah_single_2+vt", lengths="384", samples=1, max_gen_toks=6, filler="reference")
    session, evaluator = opened(embedded_model, spec), evaluator_of(spec)
    evaluator.check(spec)
    facts = evaluator.prepare(session, silent)
    told = told_by(evaluator, session)
    assert facts["filler"] == "pydoc_data.topics"
    assert list(facts["left_out"]) == ["vt 384"]
    cells: list[Cell] = session.kept["ruler"].cells["niah_single_2", 384]
    assert cells[0].question.document["outputs"][0] in cells[0].question.prompts[0]
    for records in told.records.values():
        (record,) = records.values()
        assert record["hidden"]
        assert 100 < record["context_tokens"] < record["prompt_tokens"] <= 384 - 128 + 24  # the beginning of the answer
        assert record["metrics"]["score"] in (0.0, 1.0)
    assert set(told.records) == {"baseline", "snapkv"}
    shown = evaluator.figures(told.records, "baseline", facts)
    assert [type(figure) for figure in shown] == [Table, Grid, Grid]
