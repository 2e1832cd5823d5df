"""The tasks that a run names, with their data, and which of their questions are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kvbench.errors import CorpusError, UsageError
from kvbench.harness.building import Leaf, configs_of, found_files, load_leaf, quiet, tokenizer_folder
from kvbench.harness.index import Entry, check_names, index_of, leaves
from kvbench.harness.mirrors import check_files, find, scored_split
from kvbench.models.weights import Progress
from kvbench.texts.corpora import mirror_folder

__all__ = ["DEFAULT_TASKS", "Leaf", "Loaded", "at_hand", "check_data", "load_tasks", "spread"]

DEFAULT_TASKS = ("gsm8k", "mmlu", "arc_challenge", "arc_easy", "hellaswag", "winogrande", "piqa")
Missing = Literal["refuse", "skip"]


@dataclass(frozen=True)
class Loaded:
    """What was asked for.

    Attributes:
        leaves: Task name → task, in order. left_out: Task name → why it could not be had.
        pooled: Groups whose own aggregate weighs every question alike, so that it is the mean over all their questions.
    """

    leaves: Mapping[str, Leaf]
    left_out: Mapping[str, str]
    pooled: frozenset[str] = frozenset()

    def of(self, name: str) -> list[Leaf]:
        """The tasks that came with ``name``."""
        return [leaf for leaf in self.leaves.values() if leaf.of == name]

    def facts(self) -> dict[str, Any]:
        """Plain values for the result: questions asked and had, examples, sources, what was left out."""
        from importlib.metadata import version

        files: dict[str, str] = {}
        for leaf in self.leaves.values():
            files |= leaf.source.get("files", {})
        tasks = {
            leaf.name: {
                "of": leaf.of, "asked": len(leaf.chosen), "of_questions": leaf.size, "fewshot": leaf.config.num_fewshot,
                "version": str(leaf.task.VERSION),
                "source": leaf.source.get("hub") or sorted(leaf.source.get("files", {})) or "made by the task",
            }
            for leaf in self.leaves.values()
        }  # fmt: skip
        return {"harness": version("lm_eval"), "tasks": tasks, "files": files, "left_out": dict(self.left_out)}


def check_data(names: Sequence[str], data_dir: str | None, *, fewshot: int | None = None) -> None:
    """Refuse unknown names, and mirror files with a broken line, before anything is loaded.

    Raises:
        UnknownName: a name that the harness does not have. UsageError: a task that cannot be run, or one that is asked for twice.
        CorpusError: a file of the mirror that cannot be read, with its line.
    """
    check_names(names)
    _check_twice(names)
    folder, index = mirror_folder(data_dir), index_of(names)
    for leaf in (leaf for name in names for leaf in leaves(name, index)):
        examples = index[leaf].fewshot if fewshot is None else fewshot
        check_files(found_files(folder, leaf, index[leaf], examples).values())


def load_tasks(
    names: Sequence[str],
    data_dir: str | None,
    *,
    questions: int,
    seed: int,
    stage: Progress,
    tokenizer: Any | None = None,
    overrides: Mapping[str, Any] | Callable[[str], Mapping[str, Any]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    fewshot: int | None = None,
    missing: Missing = "refuse",
) -> Loaded:
    """Load tasks, groups and tags, and choose which of their questions are asked.

    Args:
        names: As the harness has them. data_dir: The run's mirror folder (``spec.corpus.data_dir``).
        questions: Of each of ``names``, spread evenly over its tasks and over their documents; 0 is all.
        seed: Of few-shot examples, added to the harness's own; so 0 is the harness's.
        stage: Told progress.
        tokenizer: For tasks that make their texts to measure: they are given a folder of it as ``metadata["tokenizer"]``.
        overrides: Keys of a task's configuration to change: for all tasks, or by task name.
        metadata: What tasks that make their own data are given (``max_seq_lengths``).
        fewshot: Examples before each question; ``None`` is the task's own number. As in the harness, a task that fixes 0 keeps it.
        missing: What to do with a task whose data cannot be had: refuse the run, or leave the task out and say so.

    Raises:
        UnknownName, UsageError: as :func:`check_data`.
        CorpusError: data that cannot be had, unless ``missing=skip``.
    """
    check_names(names)
    _check_twice(names)
    folder, index = mirror_folder(data_dir), index_of(names)
    given = dict(metadata or {}) | ({} if tokenizer is None else {"tokenizer": str(tokenizer_folder(tokenizer))})
    found, left_out, pooled = [], {}, set()
    with quiet():
        for name in names:
            configs, is_pooled = configs_of(name, given)
            pooled |= {name} if is_pooled else set()
            for done, (leaf, config) in enumerate(configs.items()):
                stage(f"reading {name}", done, len(configs))
                changes = overrides(leaf) if callable(overrides) else overrides or {}
                try:
                    found.append(load_leaf(leaf, name, {**config, **changes}, index.get(leaf, Entry("task")), folder, seed, fewshot))
                except CorpusError as error:
                    if missing == "refuse":
                        raise _with_hint(error, folder) from error
                    left_out[leaf] = error.message
            stage(f"reading {name}", len(configs), len(configs))
    return Loaded({leaf.name: leaf for leaf in _chosen(found, questions)}, left_out, frozenset(pooled))


def spread(sizes: Sequence[int], total: int) -> list[int]:
    """How many questions each of several tasks asks: as even as their sizes allow, ``total`` in all (0 is all there are).

    What cannot be shared out evenly goes to tasks at even distances.
    """
    counts = [0] * len(sizes)
    left = min(total, sum(sizes)) if total else sum(sizes)
    while left:
        open_ = [i for i, size in enumerate(sizes) if counts[i] < size]
        share = left // len(open_)
        turns = open_ if share else [open_[i * len(open_) // left] for i in range(left)]
        for i in turns:
            taken = min(max(1, share), sizes[i] - counts[i])
            counts[i], left = counts[i] + taken, left - taken
    return counts


def _chosen(found: Sequence[Leaf], questions: int) -> Iterator[Leaf]:
    """Each task with its questions, at even distances within it."""
    from dataclasses import replace

    for name in dict.fromkeys(leaf.of for leaf in found):
        group = [leaf for leaf in found if leaf.of == name]
        for leaf, count in zip(group, spread([leaf.size for leaf in group], questions), strict=True):
            if count:
                yield replace(leaf, chosen=[(2 * i + 1) * leaf.size // (2 * count) for i in range(count)])


def _check_twice(names: Sequence[str]) -> None:
    index = index_of(names)
    seen: dict[str, str] = {}
    for name in names:
        for leaf in leaves(name, index):
            if seen.setdefault(leaf, name) != name or names.count(name) > 1:
                raise UsageError(f"task '{leaf}' is asked for twice: with {seen[leaf]} and with {name}", hint="name each task once")


def _with_hint(error: CorpusError, folder: Path | None) -> CorpusError:
    return error if error.hint else CorpusError(error.message, hint=_hint(folder))


def at_hand(names: Sequence[str], folder: Path | None) -> list[str]:
    """Those of ``names`` whose questions a mirror has, every one of their tasks."""
    index = index_of(names)

    def has(name: str, entry: Entry) -> bool:
        scored = scored_split(entry)
        return scored is not None and find(folder, name, entry, scored) is not None

    return [name for name in names if all(has(leaf, index[leaf]) for leaf in leaves(name, index))]


def _hint(folder: Path | None) -> str:
    have = at_hand(DEFAULT_TASKS, folder)
    said = f"names={'+'.join(have)} are at hand" if have else "name a folder of data files with --data-dir"
    return f"{said}; missing=skip leaves out what is not"
