"""LongBench: the harness's prompts and metrics through our path, the benchmark's truncation, the hidden question."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sessions import opened
from telling import Told

from kvbench.errors import CorpusError, UnknownName, UsageError
from kvbench.evaluators.base import build
from kvbench.evaluators.longbench import LongBench
from kvbench.figures import Table
from kvbench.harness.encoding import Encoded
from kvbench.harness.longbench_tasks import MiddleEncoder, harness_name, middle, own_metrics
from kvbench.harness.requests import Question, questions_of, score
from kvbench.harness.task_loading import load_tasks
from kvbench.models.weights import silent
from kvbench.spec import CorpusSpec, EvaluatorSpec, MethodSpec, RunSpec

if TYPE_CHECKING:
    from kvbench.models.loading import LoadedModel

QUESTION = "WHO asked whom?"


def row(answers: Sequence[str], classes: Sequence[str] | None = None, context: str = "The cat sat on the mat.") -> dict[str, Any]:
    """One line of THUDM/LongBench."""
    return {
        "input": QUESTION, "context": context, "answers": list(answers), "length": 6, "dataset": "d", "language": "en",
        "all_classes": None if classes is None else list(classes), "_id": "0",
    }  # fmt: skip


def mirror(folder: Path, subset: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    (folder / "longbench").mkdir(exist_ok=True)
    (folder / "longbench" / f"{subset}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def question(folder: Path, subset: str, rows: Sequence[Mapping[str, Any]]) -> Question:
    name = harness_name(subset)
    loaded = load_tasks([name], str(mirror(folder, subset, rows)), questions=1, seed=0, stage=silent)
    return questions_of(loaded.leaves[name])[0]


REFUSAL = "I'm sorry, but I cannot answer that."
F1 = 2 * (2 / 3) / (2 / 3 + 1)
"""Of "cat sat down" for "cat sat": two of three words are right, and both are there."""


@pytest.mark.parametrize(
    ("subset", "answers", "classes", "said"),
    [
        # QA: F1 of words without case, articles and punctuation; the best of the answers counts.
        ("qasper", ["the cat sat", "nothing"], None, {"A cat sat, DOWN.": F1, "": 0.0, REFUSAL: 0.0, "The cat sat!": 1.0, "Nothing": 1.0}),
        # Chinese QA: F1 of jieba's words, 在 and 北京大学; punctuation is no word.
        ("multifieldqa_zh", ["在北京大学"], None, {"北京大学。": 2 / 3, "": 0.0, "对不起我无法回答。": 0.0, "在北京大学": 1.0}),
        # Summaries: ROUGE-L, here 2 of 2 words in order of 4, 2 · 1 · ½ / (1 + ½), but for 1e-8 in the package's denominator.
        ("gov_report", ["alpha beta gamma delta"], None, {"alpha gamma": 2 / 3, "": 0.0, REFUSAL: 0.0, "alpha beta gamma delta": 1.0}),
        # A class: one over the classes that are named, if the right one is.
        ("trec", ["Location"], ["Human", "Location"], {"Location": 1.0, "Human or Location": 0.5, "": 0.0, REFUSAL: 0.0, "Human": 0.0}),
        # A count and a paragraph: the share of the numbers given that are right.
        ("passage_count", ["5"], None, {"5": 1.0, "5, or 7": 0.5, "": 0.0, REFUSAL: 0.0, "five": 0.0}),
        ("passage_retrieval_en", ["Paragraph 3"], None, {"Paragraph 3": 1.0, "3 or 13": 0.5, "": 0.0, REFUSAL: 0.0}),
        # Code: fuzzywuzzy's ratio, 2 · equal letters / all letters, of the first line that is no comment.
        ("lcc", ["return x"], None, {"# so\nreturn x\nfoo": 1.0, "return y": round(100 * 14 / 16) / 100, "": 0.0}),
    ],
)
def test_metrics_are_the_harnesss_and_as_counted_by_hand(
    subset: str, answers: list[str], classes: list[str] | None, said: dict[str, float], tmp_path: Path
) -> None:
    asked = question(tmp_path, subset, [row(answers, classes)])
    for answer, expected in said.items():
        found = own_metrics(score(asked, [answer]))
        assert len(found) == 1, found
        assert next(iter(found.values())) == pytest.approx(expected, abs=2e-8), (answer, found)


def test_the_second_version_is_multiple_choice_and_reads_both_layouts(tmp_path: Path) -> None:
    (tmp_path / "longbench2").mkdir()
    made = {"_id": "0", "question": " Which? ", "context": "A long text.", "answer": "C"}
    (tmp_path / "longbench2" / "academic_single.jsonl").write_text(json.dumps(made | {f"choice_{c}": f"is {c}" for c in "ABCD"}) + "\n")
    name = "longbench2_academic_single"
    asked = questions_of(load_tasks([name], str(tmp_path), questions=1, seed=0, stage=silent).leaves[name])[0]
    assert asked.options == [" A", " B", " C", " D"]
    assert "question: Which?\nChoices:\n(A) is A\n" in asked.prompts[0]
    wrong, right = [(-1.0, True), (-2.0, False), (-3.0, False), (-4.0, False)], [(-3.0, False), (-2.0, False), (-1.0, True), (-4.0, False)]
    assert own_metrics(score(asked, wrong)) == {"acc,none": 0.0}
    assert own_metrics(score(asked, right)) == {"acc,none": 1.0}


@pytest.mark.parametrize(
    ("split", "most", "prompt", "left"),
    [
        (7, 10, range(10), 7),  # short enough: as it is
        (7, 4, [0, 1, 8, 9], 2),  # the first and the last half; what is left of the context is before the cut
        (9, 4, [0, 1, 8, 9], 3),  # the context reaches into the last half
        (1, 4, [0, 1, 8, 9], 1),
        (7, 5, [0, 1, 8, 9], 2),  # an odd limit: two halves of two, as int(max_length / 2) gives
        (None, 4, [0, 1, 8, 9], None),
    ],
)  # fmt: skip
def test_a_long_prompt_loses_its_middle(split: int | None, most: int, prompt: Sequence[int], left: int | None) -> None:
    found = middle(Encoded(list(range(10)), split), most)
    assert (found.ids, found.split, found.cut) == (list(prompt), left, 10 - len(prompt))


class Characters:
    """A tokenizer of one token a character."""

    eos_token_id, bos_token_id, bos_token = 0, None, None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, tokens: Any, **_: Any) -> str:
        return "".join(chr(token) for token in ([tokens] if isinstance(tokens, int) else tokens))


class Config:
    max_position_embeddings = 600


@pytest.mark.parametrize("subset", ["qasper", "multi_news", "trec", "passage_count", "lcc", "repobench-p", "samsum"])
@pytest.mark.parametrize("length", [0, 301])
def test_nothing_that_is_asked_is_in_the_context(subset: str, length: int, tmp_path: Path) -> None:
    """Every token before the cut is the instruction's or the document's; every token of what is asked comes after it."""
    document = "".join(f"Sentence {i} of a long document. " for i in range(40)).strip()
    asked = question(tmp_path, subset, [row(["x"], ["x"], document)])
    encoder = MiddleEncoder(Characters(), Config(), length)
    ask, longest, _ = encoder.generation(asked, 64)
    assert ask.cut
    assert ask.split is not None
    assert len(ask.ids) <= (length or 600 - longest)
    context, rest = encoder.tokenizer.decode(ask.ids[: ask.split]), encoder.tokenizer.decode(ask.ids[ask.split :])
    prompt = asked.prompts[0]
    assert prompt.startswith(context[: len(ask.ids) // 2])
    assert prompt.endswith(rest)
    after = prompt[prompt.index(document) + len(document) :]
    assert after.endswith(rest)
    assert rest == after or len(after) > len(ask.ids) // 2  # what is asked may fill the last half; then it has lost its beginning
    assert QUESTION not in context


def test_an_answer_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    encoder = MiddleEncoder(Characters(), Config(), 0)
    encoder.positions = 65
    with pytest.raises(UsageError, match="no room in the model's 65 positions"):
        encoder.generation(question(tmp_path, "qasper", [row(["x"])]), 64)


def spec_of(folder: Path | None, **options: Any) -> RunSpec:
    evaluators = (EvaluatorSpec("longbench", tuple(options.items())),)
    methods = (MethodSpec("baseline"), MethodSpec("snapkv"))
    return RunSpec(
        evaluators=evaluators, methods=methods, context=64, continuation=8, samples=1, corpus=CorpusSpec(data_dir=folder and str(folder))
    )


def evaluator_of(spec: RunSpec) -> LongBench:
    built: LongBench = build(LongBench, spec.evaluators[0], "evaluator")
    return built


def test_an_unknown_subset_gives_the_nearest(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, subsets="multinews")
    with pytest.raises(UnknownName, match="did you mean multi_news"):
        evaluator_of(spec).check(spec)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    file = mirror(tmp_path, "qasper", [row(["x"])]) / "longbench" / "qasper.jsonl"
    file.write_text(file.read_text() + "{broken\n")
    spec = spec_of(tmp_path, subsets="qasper")
    with pytest.raises(CorpusError, match=r"longbench/qasper.jsonl, line 2: broken JSON"):
        evaluator_of(spec).check(spec)


def test_metrics_that_are_not_installed_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvbench.harness.longbench_tasks.METRICS", ("no_such_package",))
    spec = spec_of(tmp_path, subsets="qasper")
    with pytest.raises(UsageError, match="no_such_package") as told:
        evaluator_of(spec).check(spec)
    assert "kvbench[longbench]" in str(told.value.hint)


def test_a_prompt_beyond_the_models_positions_is_refused_before_the_run() -> None:
    spec = spec_of(None, max_length=9000)
    with pytest.raises(UsageError, match="9,000 tokens, beyond this model's 8,192 positions"):
        evaluator_of(spec).check_length(spec, 8192)
    evaluator_of(spec).check_length(spec, 9000)


@pytest.mark.model
def test_a_run_on_the_embedded_model(embedded_model: LoadedModel, tmp_path: Path) -> None:
    """Two subsets, one of them with fewer questions than were asked for; the same prompt for both methods, and its tables."""
    document = "The capital of France is Paris. " * 40
    mirror(mirror(tmp_path, "qasper", [row(["Paris"], None, document)] * 2), "multi_news", [row(["Paris is a capital."], None, document)])
    spec = spec_of(tmp_path, subsets="qasper+multi_news", samples=2, max_length=96, max_gen_toks=2, question="both")
    session = opened(embedded_model, spec)
    evaluator = evaluator_of(spec)
    told = Told(evaluator.name)
    evaluator.check(spec)
    facts = evaluator.prepare(session, silent)
    units = evaluator.units(spec, list(session.methods))
    for unit in units:
        evaluator.run(unit, session, told)
    assert len(units) == 4
    assert facts["prompts"] == {
        "qasper": {"asked": 2, "longest": 96, "shortened": 2}, "multi_news": {"asked": 1, "longest": 96, "shortened": 1},
    }  # fmt: skip
    keys = ["longbench_qasper/0", "longbench_multi_news/0", "longbench_qasper/1"]
    assert list(told.records["snapkv"]) == [name for key in keys for name in (key, f"{key}/visible")]
    for records in told.records.values():
        for key, record in records.items():
            assert record["prompt_tokens"] == 96
            assert record["cut_tokens"] > 0
            assert record["answer_tokens"] <= 2
            assert record["hidden"] is not key.endswith("/visible")
            assert (record["context_tokens"] == 95) is key.endswith("/visible")
    shown = evaluator.figures(told.records, "baseline", facts)
    assert [figure.name for figure in shown] == ["longbench", "longbench_question"]
    assert isinstance(shown[0], Table)
    assert shown[0].headings[1] == "qasper qa_f1_score %"
    assert "3 of 3 prompts lost their middle to fit, as in the benchmark" in shown[0].notes
    summary = evaluator.summarise(told.records, "baseline")["snapkv"].fields
    assert summary["headline"] == {"longbench": summary["longbench_accuracy"]}
    assert summary["longbench_compression_factor"] > 1.5
