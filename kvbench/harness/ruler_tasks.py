"""RULER's tasks as questions: the harness's samples, prompts and metrics, and the filler that they are made with."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.errors import CorpusError, UnknownName, told
from kvbench.files import read_text
from kvbench.harness.encoding import Encoder
from kvbench.harness.index import tasks_folder
from kvbench.harness.requests import Question, questions_of, score
from kvbench.harness.ruler_samples import DoesNotFit, Made, Supplies, make
from kvbench.harness.task_loading import Leaf
from kvbench.texts.corpora import ESSAYS, mirror_folder, mirrored, open_text
from kvbench.texts.hub import stop_asking

if TYPE_CHECKING:
    from kvbench.instruments.context import Stage
    from kvbench.instruments.session import Session

GROUP = "ruler"
"""The one file of the folder that is no task."""
TRIES = 3
"""How often a task is made for fewer tokens, until its prompts fit the model's positions."""


@dataclass(frozen=True)
class Cell:
    """One sample. key: Of its records. task, length: What it is of. question: What is asked."""

    key: str
    task: str
    length: int
    question: Question


@dataclass(frozen=True)
class Prepared:
    """All samples by task and length, and what the result says of them."""

    encoder: Encoder
    cells: Mapping[tuple[str, int], Sequence[Cell]]
    facts: Mapping[str, Any]


def check_tasks(names: Sequence[str]) -> None:
    """Refuse tasks that RULER does not have.

    Raises:
        UnknownName: with the nearest names.
    """
    known = {file.stem for file in (tasks_folder() / "ruler").glob("*.yaml")} - {GROUP}
    for name in names:
        if name not in known:
            raise UnknownName("RULER task", name, known, hint=f"tasks are {', '.join(sorted(known))}")


def prepare(
    session: Session, cells: Sequence[tuple[str, int]], stage: Stage, *, samples: int, filler: str, most: int, skip: bool
) -> Prepared:
    """Make every (task, length) of ``cells``; what is too long for its length is left out, and if ``skip`` what has no data.

    Raises:
        CorpusError: there are no data of one, or nothing is left, unless ``skip``.
    """
    encoder = Encoder(session.loaded.tokenizer, session.loaded.model.config)
    folder = mirror_folder(session.spec.corpus.data_dir)
    words, source, digest = _filler(filler, mirrored(ESSAYS, session.spec.corpus.data_dir))
    split, splitter = sentence_splitter()
    supplies = Supplies(session.loaded.tokenizer, words, split, session.spec.seed, folder)
    found: dict[tuple[str, int], list[Cell]] = {}
    left_out: dict[str, str] = {}
    for done, (task, length) in enumerate(cells):
        stage("making RULER's samples", done, len(cells))
        try:
            found[task, length] = _cell(task, length, samples, supplies, encoder, most)
        except DoesNotFit as error:
            left_out[f"{task} {length}"] = str(error)
        except CorpusError as error:
            if not skip:
                raise CorpusError(f"RULER's task '{task}': {error.message}", hint=f"{error.hint}; or missing=skip") from error
            left_out[f"{task} {length}"] = error.message
    stage("making RULER's samples", len(cells), len(cells))
    if not found and not skip:
        raise CorpusError(f"none of RULER's tasks can be made: {next(iter(left_out.values()))}", hint="longer ones: lengths=4096")
    facts = {"filler": source, "filler_hash": digest, "sentences": splitter, "left_out": left_out}
    return Prepared(encoder, found, {**facts, **_made(found, encoder, most)})


def score_of(question: Question, answers: Sequence[str]) -> float:
    """The fraction of the wanted strings that the answer holds, by the harness's own metric."""
    found = score(question, answers)
    return float(found[f"{question.document['max_length']},none"])


def sentence_splitter() -> tuple[Callable[[str], list[str]], str]:
    """nltk's Punkt, between whose sentences needles go, and what it is: with its English tables where they are installed."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        from nltk.tokenize.punkt import PunktSentenceTokenizer

        return PunktSentenceTokenizer().tokenize, "nltk's Punkt without its English tables (python -m nltk.downloader punkt_tab)"
    return nltk.sent_tokenize, "nltk's Punkt"


def _filler(name: str, file: Path | None) -> tuple[list[str], str, str]:
    """Words, where they are from, and a hash of the text."""
    if name == "reference" or (name == "auto" and file is None):
        text = open_text("language_reference", None)
        text.at_least(1 << 30)
        whole, source = text.read, text.source
    elif file is not None:
        try:
            whole, source = read_text(file), ESSAYS
        except (OSError, UnicodeDecodeError) as error:
            raise CorpusError(f"'{file}' cannot be read: {error}", hint="filler=reference needs no file") from error
    else:
        whole, source = _hub_essays(), "baber/paul_graham_essays"
    return re.sub(r"\s+", " ", whole).strip().split(" "), source, hashlib.sha256(whole.encode()).hexdigest()


def _hub_essays() -> str:
    """The hub dataset that the harness reads."""
    try:
        from datasets import load_dataset

        return " ".join(load_dataset("baber/paul_graham_essays", split="train")["text"])
    except Exception as error:  # whatever the hub and the file systems behind it raise
        if isinstance(error, ConnectionError):
            stop_asking()
        raise CorpusError(
            f"the essays cannot be read from the hub (baber/paul_graham_essays): {told(error)}",
            hint=f"put {ESSAYS} into a folder and name it with --data-dir, or use filler=reference",
        ) from error


def _cell(task: str, length: int, samples: int, supplies: Supplies, encoder: Encoder, most: int) -> list[Cell]:
    """The samples of one task and length; made for somewhat fewer tokens where they would not fit the model's positions.

    The harness's sizes leave out the beginning of the answer that it writes itself, and for fwe the answer.
    """
    wanted = length
    for _ in range(TRIES):
        questions = questions_of_made(task, make(_config(task)["custom_dataset"], wanted, samples, supplies))
        excess = max(encoder.generation(question, most)[0].cut for question in questions)
        if not excess:
            return [Cell(f"{task}/{length}/{i}", task, length, question) for i, question in enumerate(questions)]
        wanted -= excess
    raise DoesNotFit(f"its prompts are longer than the model's {encoder.limit:,} positions")


def _config(task: str) -> dict[str, Any]:
    """The task's YAML, whose functions are the harness's own but for what makes its data, which is named ``module.function``."""
    from importlib import import_module

    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(tasks_folder() / "ruler" / f"{task}.yaml", resolve_func=False)

    def resolved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: resolved(of) for key, of in value.items()}
        if isinstance(value, list):
            return [resolved(of) for of in value]
        module, _, function = Path(value).name.rpartition(".") if isinstance(value, str) else ("", "", "")
        return getattr(import_module("lm_eval.tasks.ruler.common_utils"), function) if module == "common_utils" else value

    own = Path(config.pop("custom_dataset")).name
    return {**resolved(config), "custom_dataset": own}


def questions_of_made(task: str, made: Made) -> list[Question]:
    """The documents as the harness's task asks them, their contexts ending where the task's own template says."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    own = {"custom_dataset": lambda **_: {"test": Dataset.from_list(made.docs)}, "num_fewshot": 0}
    held = ConfigurableTask(config={**_config(task), **own})
    leaf = Leaf(task, task, held, list(range(len(made.docs))), len(made.docs), {"made": task})
    return [replace(question, ends=[made.context_end(question.prompts[0])]) for question in questions_of(leaf)]


def _made(found: Mapping[tuple[str, int], Sequence[Cell]], encoder: Encoder, most: int) -> dict[str, Any]:
    """Samples and mean prompt tokens of each task and length, as asked."""
    from importlib.metadata import version

    prompts = {}
    for (task, length), cells in found.items():
        tokens = [len(encoder.generation(cell.question, most)[0].ids) for cell in cells]
        prompts[f"{task} {length}"] = {"samples": len(cells), "prompt_tokens": round(sum(tokens) / len(tokens))}
    return {"harness": version("lm_eval"), "made": prompts}
