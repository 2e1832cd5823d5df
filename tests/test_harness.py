"""The harness's room: names, mirrors, which questions, where a context ends, and prompts as token ids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from kvbench.errors import CorpusError, UnknownName, UsageError
from kvbench.harness import index, mirrors
from kvbench.harness.index import Entry, check_names, folders_of, index_of, leaves
from kvbench.harness.requests import plain, questions_of
from kvbench.harness.task_loading import DEFAULT_TASKS, at_hand, check_data, load_tasks, spread
from kvbench.models.weights import silent

GSM8K = [{"question": f"What is {i} + {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(8)]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return file


def test_a_group_is_its_tasks_and_a_tag_too() -> None:
    known = index_of(DEFAULT_TASKS)
    assert len(leaves("mmlu", known)) == 57
    assert leaves("gsm8k", known) == ["gsm8k"]
    assert set(leaves("ai2_arc", known)) == {"arc_easy", "arc_challenge"}
    assert [folder.name for folder in folders_of(["mmlu", "piqa"])] == ["default", "piqa"]
    assert leaves("loop", {"loop": Entry("group", members=("loop", "a")), "a": Entry("task")}) == ["a"]


def test_a_plan_needs_neither_the_harness_nor_torch() -> None:
    """Once the index is there, checking names is reading one file."""
    check_names(DEFAULT_TASKS)
    code = (
        f"import sys; from kvbench.harness.index import check_names; check_names({DEFAULT_TASKS});"
        "print({'torch', 'lm_eval', 'datasets'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_unknown_names_carry_the_nearest_and_what_cannot_be_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"hellaswag": Entry("task"), "piqa": Entry("task"), "rolling": Entry("task", refused="it is the likelihood of whole texts")}
    monkeypatch.setattr(index, "_read", lambda part, folders: known)
    with pytest.raises(UnknownName) as caught:
        check_names(["hellaswagg"])
    assert caught.value.nearest == ["hellaswag"]
    with pytest.raises(UsageError, match="whole texts") as refused:
        check_names(["rolling"])
    assert "perplexity" in str(refused.value.hint)


def test_an_index_file_that_is_broken_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    index._read.cache_clear()
    try:
        first = index._read("small", ("piqa",))
        (file,) = (tmp_path / "harness").iterdir()
        file.write_bytes(b'{"piqa": 1}')
        index._read.cache_clear()
        assert index._read("small", ("piqa",)) == first
    finally:
        index._read.cache_clear()
    assert first["piqa"].splits == {"validation": "validation", "training": "train"}


@pytest.mark.parametrize(
    ("sizes", "total", "counts"),
    [
        ([9], 4, [4]),
        ([3, 3, 3], 0, [3, 3, 3]),
        ([9, 9, 9], 7, [3, 2, 2]),
        ([1, 9, 9], 9, [1, 4, 4]),
        ([5] * 4, 2, [1, 0, 1, 0]),
        ([2, 1], 9, [2, 1]),
    ],
)
def test_questions_are_spread_evenly(sizes: list[int], total: int, counts: list[int]) -> None:
    assert spread(sizes, total) == counts


def test_rows_come_from_every_format_and_from_the_right_config(tmp_path: Path) -> None:
    rows = [{"question": "q", "subject": s, "choices": ["a"], "answer": 0} for s in ("anatomy", "virology")]
    entry = index_of(["mmlu"])["mmlu_virology"]
    write(tmp_path / "mmlu" / "test.jsonl", rows)
    found = mirrors.find(tmp_path, "mmlu_virology", entry, "test")
    assert found is not None
    assert found.rows() == rows[1:]
    (tmp_path / "own.json").write_bytes(orjson.dumps(rows))
    assert mirrors.read(tmp_path / "own.json") == rows
    for marked, file in (("marked.json", "own.json"), ("marked.jsonl", "mmlu/test.jsonl")):
        (tmp_path / marked).write_bytes(b"\xef\xbb\xbf" + (tmp_path / file).read_bytes())
        assert mirrors.read(tmp_path / marked) == rows
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "own.parquet")
    assert mirrors.read(tmp_path / "own.parquet") == rows
    assert mirrors.find(tmp_path, "gsm8k", index_of(["gsm8k"])["gsm8k"], "test") is None
    other = Entry("task", dataset="allenai/ai2_arc", config="ARC-Easy", splits={"test": "test"})
    write(tmp_path / "arc_challenge" / "test.jsonl", rows)
    assert mirrors.find(tmp_path, "arc_easy", other, "test") is None


@pytest.mark.parametrize(("text", "says"), [(b'{"a": 1}\n{"a": \n', "line 2: broken JSON"), (b"\n\n[1]\n", "line 3: not an object")])
def test_a_broken_line_is_named(text: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "piqa" / "validation.jsonl"
    file.parent.mkdir()
    file.write_bytes(text)
    with pytest.raises(CorpusError, match=says):
        check_data(["piqa"], str(tmp_path))


@pytest.mark.parametrize(
    ("whole", "a", "b"),
    [
        ("A man sits on a roof. he", "A man sits on a roof.", "he"),
        ("He asks why! Then the lady", "He asks why!", "Then the lady"),
        ("[step] Mix it. Stir it.", "[step] Mix it. Stir it.", ""),
        ("no sentence ends", "no sentence ends", ""),
    ],
)  # fmt: skip
def test_hellaswag_contexts_are_split_as_on_the_hub(whole: str, a: str, b: str) -> None:
    row = mirrors._hellaswag({"ctx": whole})
    assert (row["ctx_a"], row["ctx_b"]) == (a, b)
    assert mirrors._hellaswag({"ctx_a": "x", "ctx": "y"}) == {"ctx_a": "x", "ctx": "y"}


def test_examples_need_their_split_and_without_data_it_is_said_what_is_at_hand(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k" / "test.jsonl", GSM8K)
    with pytest.raises(CorpusError, match=r"5 examples from split 'train'.*only gsm8k/test.jsonl") as caught:
        load_tasks(["gsm8k"], str(tmp_path), questions=2, seed=0, stage=silent)
    assert "fewshot=0" in str(caught.value.hint)
    loaded = load_tasks(["gsm8k", "piqa"], str(tmp_path), questions=2, seed=0, stage=silent, fewshot=0, missing="skip")
    assert list(loaded.leaves) == ["gsm8k"]
    assert "baber/piqa" in loaded.left_out["piqa"]
    assert at_hand(DEFAULT_TASKS, tmp_path) == ["gsm8k"]
    with pytest.raises(CorpusError) as missing:
        load_tasks(["piqa"], str(tmp_path), questions=2, seed=0, stage=silent)
    assert "names=gsm8k are at hand" in str(missing.value.hint)


def test_examples_are_the_same_each_time_and_stand_before_the_question(tmp_path: Path) -> None:
    for split in ("test", "train"):
        write(tmp_path / "gsm8k" / f"{split}.jsonl", GSM8K)
    first, again, other = (
        questions_of(load_tasks(["gsm8k"], str(tmp_path), questions=3, seed=seed, stage=silent, fewshot=2).leaves["gsm8k"])
        for seed in (0, 0, 1)
    )
    assert [q.prompts for q in first] == [q.prompts for q in again] != [q.prompts for q in other]
    assert [q.number for q in first] == [1, 4, 6]
    for question in first:
        prompt, end = question.prompts[0], question.ends[0]
        assert prompt[:end].endswith("\n\n")
        assert prompt[end:] == f"Question: {question.document['question']}\nAnswer:"


def test_a_context_ends_with_its_column_and_a_description_is_none(tmp_path: Path) -> None:
    write(tmp_path / "longbench" / "narrativeqa.jsonl", [{"context": "Ann has a hat.", "question": "What has Ann?", "answers": ["a hat"]}])
    write(tmp_path / "mmlu" / "test.jsonl", [{"question": "q?", "subject": "virology", "choices": ["1", "2", "3", "4"], "answer": 0}])
    loaded = load_tasks(["longbench_narrativeqa", "mmlu_virology"], str(tmp_path), questions=1, seed=0, stage=silent)
    story, fact = (questions_of(leaf)[0] for leaf in loaded.leaves.values())
    assert story.prompts[0][: story.ends[0]].endswith("Story: Ann has a hat.")
    assert fact.prompts[0].startswith("The following are multiple choice questions")
    assert fact.ends == [None] * 4
    assert fact.options == [" A", " B", " C", " D"]


def test_values_become_plain_data() -> None:
    import numpy as np

    assert plain((1, np.float32(0.5), [True, None], "x", {"a": np.arange(2)})) == [1.0, 0.5, [1.0, None], "x", {"a": [0.0, 1.0]}]
