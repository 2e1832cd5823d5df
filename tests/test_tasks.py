"""The tasks evaluator against the harness's own Hugging Face backend: same model, same questions, same numbers."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sessions import loaded_of, opened, told_by
from telling import Told
from torch import nn

from kvbench.errors import CorpusError, UnknownName, UsageError
from kvbench.evaluators.tasks import IN_A_UNIT, SHARDS, Tasks
from kvbench.figures import Table
from kvbench.harness.encoding import Encoder
from kvbench.harness.replies import reply
from kvbench.harness.requests import Question
from kvbench.harness.task_loading import load_tasks
from kvbench.instruments.protocol import Runner
from kvbench.instruments.session import Session
from kvbench.instruments.tiny import make_tiny_model
from kvbench.methods.base import expand
from kvbench.models.weights import silent
from kvbench.spec import CorpusSpec, EvaluatorSpec, RunSpec
from kvbench.texts.tokens import Reader

if TYPE_CHECKING:
    from kvbench.models.loading import LoadedModel

FEWSHOT, LONGEST = 2, 32
"""Of gsm8k, for both sides: its own 5 examples and 256 tokens would take minutes."""
FIRST = (2, 8, 3)
"""Layers of the embedded model, with its own weights, tokenizer and head; questions, and those of gsm8k."""
ALL = (0, 50, 10)
"""The same of the whole model, for minutes."""


def harness_says(model: Any, tokenizer: Any, evaluator: Tasks, data_dir: Path) -> dict[str, Any]:
    """``lm_eval.evaluator.evaluate`` with the harness's backend, its attention and its cache, a question at a time."""
    from lm_eval.api.group import AggMetricConfig, Group
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    assert model.config._attn_implementation in ("sdpa", "eager")
    fewshot = None if evaluator.fewshot < 0 else evaluator.fewshot
    loaded = load_tasks(evaluator.names.split("+"), str(data_dir), questions=evaluator.questions, seed=0, stage=silent, fewshot=fewshot)
    tasks = {leaf.name: leaf.task for leaf in loaded.leaves.values()}
    group = Group("mmlu", aggregate_metric_list=[AggMetricConfig("acc")])
    for leaf in loaded.leaves.values():
        leaf.task.set_fewshot_seed(1234)  # as the harness's simple_evaluate does
        if leaf.task.OUTPUT_TYPE == "generate_until":
            leaf.task.set_config("generation_kwargs", {"max_gen_toks": evaluator.max_gen_toks}, update=True)
        if leaf.of == "mmlu":
            group.add(leaf.task)
    return evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1), {"tasks": tasks, "groups": {"mmlu": group} if len(group) else {}},
        samples={leaf.name: leaf.chosen for leaf in loaded.leaves.values()}, bootstrap_iters=0,
    )  # fmt: skip


def session_of(model: Any, tokenizer: Any, data_dir: Path | None, methods: str = "baseline") -> Session:
    """kvbench's session of a model, whose attention becomes kvbench's."""
    spec = RunSpec(
        methods=tuple(expand(methods.split())), evaluators=(EvaluatorSpec("memory"),), context=64, samples=1,
        corpus=CorpusSpec(data_dir=None if data_dir is None else str(data_dir)),
    )  # fmt: skip
    return opened(loaded_of(model, tokenizer), spec)


def kvbench_says(evaluator: Tasks, session: Session) -> Told:
    evaluator.check(session.spec)
    evaluator.prepare(session, silent)
    return told_by(evaluator, session)


def check_equal(theirs: Mapping[str, Any], told: Told, evaluator: Tasks, within: Callable[[str], float]) -> float:
    """Every sample's answers and metrics, and every task's; returns the largest difference of a log-likelihood.

    Args:
        within: How far the log-likelihoods of an option may be apart.
    """
    ours, worst = told.records["baseline"], 0.0
    for task, samples in theirs["samples"].items():
        for sample in samples:
            record = ours[f"{task}/{sample['doc_id']}"]
            assert {name: record["metrics"][f"{name},{sample['filter']}"] for name in sample["metrics"]} == {
                name: sample[name] for name in sample["metrics"]
            }
            if "text" in record:
                assert record["text"] == sample["resps"][0][0]
                continue
            said = [response[0] for response in sample["resps"]]
            assert record["greedy"] == [greedy for _, greedy in said]
            gaps = [abs(a - b) for a, (b, _) in zip(record["loglikelihoods"], said, strict=True)]
            assert all(gap <= within(option) for gap, (_, option) in zip(gaps, sample["arguments"], strict=True))
            worst = max(worst, *gaps)
    summary = evaluator.summarise(told.records, "baseline")["baseline"].fields["tasks"]
    for name, found in summary.items():
        for metric, value in found["metrics"].items():
            assert value == pytest.approx(theirs["results"][name][metric], abs=1e-15)
    asked = {f"{task}/{sample['doc_id']}" for task, samples in theirs["samples"].items() for sample in samples}
    assert set(ours) == asked
    return worst


def shallow(model: Any, layers: int) -> Any:
    """A model of the same weights with only its first layers."""
    outline = copy.copy(model)
    outline._modules = {**model._modules, "model": copy.copy(model.model)}
    outline.model._modules = {**model.model._modules, "layers": nn.ModuleList(list(model.model.layers)[:layers])}
    own = copy.deepcopy(outline)
    for module in own.modules():
        if hasattr(module, "config"):
            module.config = own.config
    own.config.num_hidden_layers = layers
    return own


WHOLE = pytest.mark.skipif(not os.environ.get("KVBENCH_FULL"), reason="takes minutes; KVBENCH_FULL=1 runs it")


@pytest.mark.data
@pytest.mark.model
@pytest.mark.parametrize("name", ["hellaswag", "piqa", "arc_challenge", "mmlu", "gsm8k"])
@pytest.mark.parametrize("size", [FIRST, pytest.param(ALL, marks=WHOLE)], ids=["first layers", "whole model"])
def test_the_baseline_gives_what_the_harness_gives(
    name: str, size: tuple[int, int, int], embedded_model: LoadedModel, data_dir: Path
) -> None:  # fmt: skip
    """Metrics, greedy flags and texts exactly; log-likelihoods to the rounding of float32.

    One token's may differ by 64 units in the last place of a logit of 16 to 32, and those of several add up as a random walk.
    """
    layers, questions = size[0], size[2 if name == "gsm8k" else 1]
    evaluator = Tasks(name, questions, FEWSHOT if name == "gsm8k" else -1, max_gen_toks=LONGEST)
    model, tokenizer = embedded_model.model, embedded_model.tokenizer
    if layers:
        model = shallow(model, layers)
    theirs = harness_says(model, tokenizer, evaluator, data_dir)
    told = kvbench_says(evaluator, session_of(model, tokenizer, data_dir))
    assert len(told.records["baseline"]) == questions
    worst = check_equal(theirs, told, evaluator, within=lambda option: 64 * 2.0**-19 * len(tokenizer.encode(option)) ** 0.5)
    print(f"{name}: a log-likelihood differs by at most {worst:.1e}")


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    """A float64 model of 128 tokens and a tokenizer of single characters."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *map(chr, range(32, 127)), "\n"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return make_tiny_model("llama"), PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


ROWS: dict[str, list[dict[str, Any]]] = {
    "piqa/validation": [
        {"goal": f"Reach shelf number {i}", "sol1": "stand on a chair ", "sol2": "stand on a cat", "label": i % 2} for i in range(6)
    ],
    "winogrande/validation": [
        {"sentence": f"The cup {i} is in the bag since _ is small.", "option1": "the cup", "option2": "a bag", "answer": str(1 + i % 2)}
        for i in range(5)
    ],
    "arc_easy/test": [
        {"question": f"Which of {i} is a star?", "choices": {"text": ["Sun", "the Moon"], "label": ["A", "B"]}, "answerKey": "AB"[i % 2]}
        for i in range(4)
    ],
    "mmlu/test": [
        {"question": f"How many {subject} in {i}?", "subject": subject, "choices": ["0", "1", "2", "3"], "answer": i % 4}
        for subject in ("anatomy", "virology") for i in range(3)
    ],
    "gsm8k/test": [{"question": f"What is {i} + {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(5)],
    "gsm8k/train": [{"question": f"What is {i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(9)],
    "longbench/narrativeqa": [
        {"context": f"Ann has {i} hats and a red coat.", "question": "What is red?", "answers": ["a coat"], "all_classes": None}
        for i in range(2)
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    for name, rows in ROWS.items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.fast
@pytest.mark.parametrize(
    "evaluator",
    [Tasks("piqa+winogrande+arc_easy", 4), Tasks("mmlu_anatomy+mmlu_virology", 0), Tasks("gsm8k", 3, 2, "visible", 12)],
    ids=["options", "options of one token", "generation"],
)
def test_in_float64_the_baseline_is_the_harness_to_1e_9(evaluator: Tasks, tiny: tuple[Any, Any], mirror: Path) -> None:
    model, tokenizer = tiny
    theirs = harness_says(model.set_attn_implementation("sdpa") or model, tokenizer, evaluator, mirror)
    told = kvbench_says(evaluator, session_of(model, tokenizer, mirror))
    if evaluator.question == "visible":
        told.records = {label: {key.removesuffix("/visible"): of[key] for key in of} for label, of in told.records.items()}
    check_equal(theirs, told, evaluator, within=lambda _: 1e-9)


@pytest.mark.parametrize("prompt", ["", "Is it so? " * 300], ids=["empty", "longer than the model's positions"])
def test_prompts_at_the_edges_are_scored_as_the_harness_scores_them(prompt: str, tiny: tuple[Any, Any]) -> None:
    """Nothing, for which a beginning-of-sequence token stands; and too much, which is cut off at its start."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = tiny
    model.set_attn_implementation("sdpa")
    instances = [Instance("loglikelihood", {}, (prompt, option), i) for i, option in enumerate((" yes", " no", "?"))]
    said = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1).loglikelihood(instances)
    session = session_of(model, tokenizer, None, "baseline int4")
    question: Any = Question(None, 0, {}, instances, [None] * 3)  # type: ignore[arg-type]
    found = reply(session, Encoder(tokenizer, model.config), question, list(session.methods), Told("tasks").guard, hidden=True)
    assert set(found) == set(session.methods)
    assert [log for log, _ in found["baseline"].answers] == pytest.approx([log for log, _ in said], abs=1e-9)
    assert [greedy for _, greedy in found["baseline"].answers] == [greedy for _, greedy in said]
    assert (found["int4"].answers == found["baseline"].answers) == (prompt == "")
    assert ("cut_tokens" in found["int4"].facts) == (prompt != "")


def without(*names: str) -> Any:
    """The tiny model's tokenizer, but for these special tokens; it puts a BOS in front of a text if it has one."""
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *map(chr, range(32, 127)), "\n"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    if "bos_token" not in names:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    kinds = zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{kind: token for kind, token in kinds if kind not in names})


def test_a_tokenizer_without_an_end_answers_up_to_the_limit(tiny: tuple[Any, Any], mirror: Path) -> None:
    told = kvbench_says(Tasks("gsm8k", 2, 2, "visible", 6), session_of(tiny[0], without("eos_token", "bos_token"), mirror))
    assert len(told.records["baseline"]) == 2


def test_an_empty_prompt_needs_a_token_that_stands_for_it(tiny: tuple[Any, Any]) -> None:
    from lm_eval.api.instance import Instance

    question: Any = Question(None, 0, {}, [Instance("loglikelihood", {}, ("", "yes"), 0)], [None])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="neither BOS nor EOS"):
        Encoder(without("eos_token", "bos_token"), tiny[0].config).choices(question)


@pytest.mark.parametrize("bos", ["on", "off"])
def test_a_bos_that_is_asked_for_is_the_harness_s_add_bos_token(bos: Any, tiny: tuple[Any, Any]) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = tiny[0], without()
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, add_bos_token=bos == "on")
    pairs = [("Is it so?", " yes"), ("<s>Is it so? ", "no"), ("", "yes")]
    encoder = Encoder(Reader(tokenizer, bos), model.config)
    ours = encoder._pairs([Instance("loglikelihood", {}, pair, 0) for pair in pairs])
    assert ours[:2] == [theirs._encode_pair(*pair) for pair in pairs[:2]]
    assert ours[0][0][0] == (1 if bos == "on" else tokenizer.encode("I", add_special_tokens=False)[0])
    assert ours[2][0] == [1]


def test_prompts_beyond_the_embeddings_are_refused_before_any_is_asked(tiny: tuple[Any, Any], mirror: Path) -> None:
    found = Tasks("gsm8k", 1)
    found.prepare(session_of(tiny[0], Reader(tiny[1], rows=100), mirror), lambda *_: None)
    with pytest.raises(CorpusError, match=r"token id 99 .* and the model has 99 embeddings"):
        found.prepare(session_of(tiny[0], Reader(tiny[1], rows=99), mirror), lambda *_: None)


def test_methods_read_what_they_stored_and_the_question_can_be_hidden(tiny: tuple[Any, Any], mirror: Path) -> None:
    """Half the context is dropped: answers differ, and so do those of a prompt that compression saw whole; the baseline's do not."""
    evaluator = Tasks("longbench_narrativeqa+piqa", 2, question="both", max_gen_toks=8)
    told = kvbench_says(evaluator, session_of(*tiny, mirror, "baseline streaming_llm random"))
    base, other = told.records["baseline"], told.records["streaming_llm"]
    assert set(base) == {f"longbench_narrativeqa/{i}{end}" for i in (0, 1) for end in ("", "/visible")} | {"piqa/1", "piqa/4"}
    for key, data in base.items():
        assert data["hidden"] == (key in ("longbench_narrativeqa/0", "longbench_narrativeqa/1"))
        assert data["stored_bytes"] == pytest.approx(data["baseline_bytes"], rel=0.01)
        assert other[key]["stored_bytes"] < 0.6 * data["baseline_bytes"]
    for i in (0, 1):
        hidden, visible = (base[f"longbench_narrativeqa/{i}{end}"] for end in ("", "/visible"))
        assert hidden["context_tokens"] < visible["context_tokens"] == visible["prompt_tokens"] - 1
        assert hidden["text"] == visible["text"]
    assert base["piqa/1"]["loglikelihoods"] != other["piqa/1"]["loglikelihoods"]
    names = [figure.name for figure in evaluator.figures(told.records, "baseline", {})]
    assert names[:2] == ["tasks", "tasks_question"]


def test_a_method_that_breaks_is_absent_and_the_others_go_on(tiny: tuple[Any, Any], mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(*tiny, mirror, "baseline random")
    compress = Runner.compress

    def breaking(runner: Runner, method: Any, prompt: Any) -> Any:
        if method is session.methods["random"]:
            raise ArithmeticError("broken")
        return compress(runner, method, prompt)

    monkeypatch.setattr(Runner, "compress", breaking)
    told = kvbench_says(Tasks("piqa+winogrande", 2), session)
    assert told.failed == {"random"}
    assert len(told.records["baseline"]) == 4
    assert "random" not in told.records


def record(score: float, task: str = "piqa", **more: Any) -> dict[str, Any]:
    sizes = {"stored_bytes": 10, "baseline_bytes": 40, "hidden": True, "prompt_tokens": 9, "context_tokens": 8}
    return {"column": task, "task": task, "metrics": {"acc,none": score, "acc_norm,none": 1.0 - score}, **sizes} | more


def test_figures_and_summary_come_from_records_alone() -> None:
    """10 questions: the baseline has 8 right, the method 3 of the same; with the question visible it has 8."""
    right = {"baseline": 8, "snapkv": 3}
    records = {label: {f"piqa/{i}": record(float(i >= n)) for i in range(10)} for label, n in right.items()}
    records = {label: of | {f"{key}/visible": record(float(i >= 8)) for i, key in enumerate(of)} for label, of in records.items()}
    evaluator = Tasks("piqa", 10, question="both")
    found = evaluator.summarise(records, "baseline")["snapkv"]
    assert found.fields["headline"] == {"piqa": pytest.approx(0.3)}
    task = found.fields["tasks"]["piqa"]
    assert (task["metric"], task["accuracy"], task["questions"]) == ("acc_norm,none", pytest.approx(0.3), 10)
    assert task["difference"] == pytest.approx(-0.5)
    assert task["difference_low"] < -0.5 < task["difference_high"] < 0
    assert task["p"] == pytest.approx(2 * 0.5**5)
    assert task["gap"] == pytest.approx(-0.5)
    assert found.fields["tasks_compression_factor"] == 4.0
    points = {(m.metric, m.point): m for m in found.measured}
    assert set(points) == {(name, f"task=piqa{end}") for name in ("acc,none", "acc_norm,none") for end in ("", ",question=visible")}
    assert points["acc_norm,none", "task=piqa"].samples == {f"piqa/{i}": float(i < 3) for i in range(10)}
    facts = {"tasks": {"piqa": {"of": "piqa", "fewshot": 0}}, "with_context": {"piqa": 10}, "asked": {"piqa": 10}, "left_out": {"x": "why"}}
    main, gap, other = evaluator.figures(records, "baseline", facts)
    assert isinstance(main, Table)
    assert main.headings == ["method", "piqa acc_norm %", "Δ piqa acc_norm"]
    assert [row[1].split(" ")[0] for row in main.rows] == ["80.0", "30.0"]
    assert any("Holm" in note for note in main.notes)
    assert "left out: x (why)" in main.notes
    assert isinstance(gap, Table)
    assert [row[1:3] for row in gap.rows] == [["80.0", "80.0"], ["80.0", "30.0"]]
    assert other.name == "tasks_other"


def test_metrics_that_are_no_shares_have_a_table_of_their_own() -> None:
    """A mean of numbers beyond [0, 1] with its paired difference, and an aggregate that is the harness's own (Matthews' φ)."""
    pairs = [(0, 0), (1, 1), (1, 0), (0, 0)]
    rule = {"aggregation": {"mcc,none": "matthews_corrcoef"}}

    def of(add: float) -> dict[str, Any]:
        return {f"x/{i}": record(0, "x", metrics={"chars,none": 10.0 * i + add, "mcc,none": list(pairs[i])}, **rule) for i in range(4)}

    records = {"baseline": of(0.0), "int4": of(2.0)}
    evaluator = Tasks("x")
    (shown,) = evaluator.figures(records, "baseline", {})
    assert isinstance(shown, Table)
    assert shown.rows == [
        ["baseline", "15.000", "–", "0.577", "–"],
        ["int4", "17.000", "+2.000", "0.577", "–"],  # four questions that all moved by the same: p is 1/8, and nothing spreads
    ]
    assert evaluator.summarise(records, "baseline")["int4"].fields["tasks"]["x"]["metrics"]["mcc,none"] == pytest.approx(1 / 3**0.5)


def test_units_cover_every_question_once(tiny: tuple[Any, Any], mirror: Path) -> None:
    some, all_of_it = Tasks("piqa+arc_easy", 9), Tasks("piqa", 0)
    assert len(some.units(RunSpec(), ["baseline"])) == 2 * -(-9 // IN_A_UNIT)
    assert len(all_of_it.units(RunSpec(), ["baseline"])) == SHARDS
    assert len(kvbench_says(all_of_it, session_of(*tiny, mirror)).records["baseline"]) == 6


def test_bad_input_is_refused_before_anything_is_loaded(mirror: Path, tmp_path: Path) -> None:
    broken = tmp_path / "piqa"
    broken.mkdir()
    lines = (mirror / "piqa" / "validation.jsonl").read_text().splitlines()
    (broken / "validation.jsonl").write_text("\n".join([*lines[:2], lines[2][:-9], *lines[3:]]))

    def spec(folder: Path) -> RunSpec:
        return RunSpec(corpus=CorpusSpec(data_dir=str(folder)))

    with pytest.raises(CorpusError, match=r"piqa/validation.jsonl, line 3"):
        Tasks("piqa").check(spec(tmp_path))
    with pytest.raises(UsageError, match="asked for twice"):
        Tasks("mmlu+mmlu_anatomy").check(spec(mirror))
    assert UnknownName("task of the harness:", "hellaswagg", ["hellaswag", "piqa"]).nearest == ["hellaswag"]
