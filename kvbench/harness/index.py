"""Which tasks the harness has: an index of its folder of task files, kept as JSON, so that a plan need not read them.

Reading all 14,000 files takes the harness 10 s and more. The index is made once for each version of it; the tasks that
kvbench names by default stand in few folders, whose index takes a moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import msgspec
import orjson

from kvbench.errors import UnknownName, UsageError
from kvbench.models.weights import cache_folder, write_atomically

FORMAT = 2
"""Of the index file; another one makes it anew."""
ELSEWHERE = "evaluator perplexity scores text; kvbench list evaluators has the others"
COMMON = ("arc", "gsm8k", "hellaswag", "longbench", "longbench2", "mmlu/default", "piqa", "ruler", "winogrande")
"""Folders that are looked into before all others."""


@dataclass(frozen=True)
class Entry:
    """What is known of one name without loading it.

    Attributes:
        kind: ``task``, ``group`` (has members, and perhaps an aggregate of them) or ``tag`` (a list of tasks).
        folder: Of its file, relative to the harness's tasks; a tag has none.
        members: Names of what a group or tag consists of.
        dataset, config: Hub dataset; ``None`` where the task makes its own.
        splits: Which split is scored, and which it may take examples from.
        output: ``multiple_choice``, ``generate_until``, ``loglikelihood`` or ``loglikelihood_rolling``.
        fewshot: Examples before each question, if the task has its own number.
        refused: Why kvbench cannot run it, else empty.
    """

    kind: str
    folder: str = ""
    members: tuple[str, ...] = ()
    dataset: str | None = None
    config: str | None = None
    splits: dict[str, str] = field(default_factory=dict)
    output: str = ""
    fewshot: int = 0
    refused: str = ""


Index = Mapping[str, Entry]


def check_names(names: Iterable[str]) -> None:
    """Refuse names that the harness does not have, and tasks that cannot go through a compressed cache.

    Raises:
        UnknownName: with the nearest names.
        UsageError: says why the task cannot be run.
    """
    names = list(names)
    index = index_of(names)
    for name in names:
        if name not in index:
            raise UnknownName("task of the harness:", name, index, hint="lm-eval ls tasks")
        for leaf in leaves(name, index):
            if index[leaf].refused:
                raise UsageError(f"task '{leaf}' cannot be scored through a compressed cache: {index[leaf].refused}", hint=ELSEWHERE)


def leaves(name: str, index: Index) -> list[str]:
    """The tasks that a task, group or tag consists of, in the harness's order; each once."""

    def walk(name: str, above: tuple[str, ...]) -> Iterator[str]:
        entry = index.get(name)
        if entry is None or name in above:
            return
        if entry.kind == "task":
            yield name
        for member in entry.members:
            yield from walk(member, (*above, name))

    return list(dict.fromkeys(walk(name, ())))


def folders_of(names: Iterable[str]) -> list[Path]:
    """The folders whose files are needed to load ``names``."""
    names = list(names)
    index = index_of(names)
    seen: dict[str, None] = {}
    waiting = names
    while waiting:
        name = waiting.pop()
        if name in index and name not in seen:
            seen[name] = None
            waiting.extend(index[name].members)
    folders = sorted({index[name].folder for name in seen if index[name].folder})
    return [tasks_folder() / f for f in folders if not any(f.startswith(f"{other}/") for other in folders)]


def index_of(names: Sequence[str]) -> Index:
    """An index that holds ``names`` if any does: of the common folders, else of all."""
    common = _read("common", COMMON)
    return common if all(name in common for name in names) else _read("all", ("",))


@cache
def tasks_folder() -> Path:
    """The harness's folder of task files, found without importing it.

    Raises:
        UsageError: it is not installed.
    """
    from importlib.util import find_spec

    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("lm-evaluation-harness is not installed", hint='python -m pip install "lm_eval>=0.4.13,<0.5"')
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


@lru_cache(maxsize=4)
def _read(part: str, folders: tuple[str, ...]) -> Index:
    """The index of ``folders``, from its file if there is one that fits the harness's version."""
    from importlib.metadata import version

    file = cache_folder() / "harness" / f"{part}-{version('lm_eval')}-{FORMAT}.json"
    try:
        return msgspec.convert(orjson.loads(file.read_bytes()), dict[str, Entry])
    except (OSError, orjson.JSONDecodeError, msgspec.ValidationError):
        index = _scan([tasks_folder() / folder for folder in folders])
        write_atomically(file, orjson.dumps({name: asdict(entry) for name, entry in index.items()}))
        return index


def _scan(folders: Sequence[Path]) -> dict[str, Entry]:
    """Let the harness read its task files (none of the functions that they name is imported)."""
    from lm_eval.tasks import TaskManager

    found = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False).task_index
    return {name: _entry(entry.kind.name, entry.cfg or {}, entry.yaml_path, entry.tags) for name, entry in found.items()}


def _entry(kind: str, config: Mapping[str, Any], file: Path | None, tags: Iterable[str]) -> Entry:
    folder = "" if file is None else file.parent.relative_to(tasks_folder()).as_posix()
    if kind == "TAG":
        return Entry("tag", members=tuple(sorted(tags)))
    if kind == "GROUP":
        return Entry("group", folder, tuple(_members(config.get("task"))))
    own = config.get("custom_dataset") is not None
    fewshot = config.get("fewshot_config")
    given = {key: config.get(f"{key}_split") for key in ("test", "validation", "training", "fewshot")}
    if isinstance(fewshot, dict) and fewshot.get("split"):
        given["fewshot"] = fewshot["split"]
    return Entry(
        "task", folder, dataset=None if own else _text(config.get("dataset_path")), config=_text(config.get("dataset_name")),
        splits={key: str(split) for key, split in given.items() if split},
        output=str(config.get("output_type") or "generate_until"), fewshot=int(config.get("num_fewshot") or 0), refused=_refused(config),
    )  # fmt: skip


def _members(task: Any) -> Iterator[str]:
    """Names in a group's list, those of groups that are defined inside it too."""
    for item in task if isinstance(task, list) else [task]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            named = item.get("group") or item.get("task")
            if isinstance(named, str):
                yield named
            if isinstance(item.get("task"), list):
                yield from _members(item["task"])


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _refused(config: Mapping[str, Any]) -> str:
    if config.get("output_type") == "loglikelihood_rolling":
        return "it is the likelihood of whole texts, without a prompt"
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        return "it shows pictures or plays sound"
    if config.get("unsafe_code"):
        return "it runs the code that the model writes"
    if int(config.get("repeats") or 1) > 1:
        return "it samples each answer several times, and answers here are greedy"
    return ""
