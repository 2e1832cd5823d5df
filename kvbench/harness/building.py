"""One task of the harness with its data: from a mirror's files, else as the harness itself gets them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.errors import CorpusError, KvbenchError, told
from kvbench.harness.index import Entry, folders_of
from kvbench.harness.mirrors import Found, example_split, find, scored_split
from kvbench.models.weights import cache_folder, hash_tokenizer, sha256_of
from kvbench.texts.hub import stop_asking

if TYPE_CHECKING:
    from lm_eval.api.task import Task

FEWSHOT_SEED = 1234
"""The harness's own seed of few-shot examples; a run's seed is added to it."""
Config = dict[str, Any]


@dataclass(frozen=True)
class Leaf:
    """One task of the harness, ready to ask.

    Attributes:
        name: Its own. of: The name in the run's list that it came with (``mmlu`` for ``mmlu_anatomy``).
        task: The harness's ``Task``. chosen: Which of its documents are asked, ascending. size: How many it has.
        source: ``{"files": {name: sha256}}`` of a mirror, ``{"hub": id}``, or ``{"made": by the task}``.
        seed: Of its few-shot examples.
    """

    name: str
    of: str
    task: Task
    chosen: list[int]
    size: int
    source: Mapping[str, Any]
    seed: int = FEWSHOT_SEED

    @property
    def config(self) -> Any:
        """The harness's ``TaskConfig``, as the run changed it."""
        return self.task.config

    @cached_property
    def documents(self) -> Any:
        """Every document of the scored split, indexed by ``chosen``."""
        held = getattr(self.task, "task_docs", None)
        return held if held is not None else list(self.task.eval_docs)


def configs_of(name: str, metadata: Mapping[str, Any]) -> tuple[dict[str, Config], bool]:
    """Task name → its whole configuration, with what its groups say, functions imported, no data loaded; and whether it is pooled.

    The harness resolves groups, tags and includes; only the last step, where it would load data, is ours.
    """
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._factory import TaskFactory

    class Planned(ConfigurableTask):  # type: ignore[misc]
        def __init__(self, settings: Config) -> None:
            self.settings = settings

        @property
        def task_name(self) -> str:
            return str(self.settings["task"])

    class ConfigsOnly(TaskFactory):  # type: ignore[misc]
        def _build_task(self, entry: Any, overrides: Config | None) -> Planned:
            return Planned(self._load_full_config(entry, overrides))

    manager = TaskManager(include_path=[str(f) for f in folders_of([name])], include_defaults=False)
    manager._factory = ConfigsOnly(meta=dict(metadata))
    loaded = manager.load(name)
    rules: list[Any] = getattr(loaded["groups"].get(name), "aggregate_metric_list", None) or []
    is_pooled = bool(rules) and all(rule.weight_by_size and rule.aggregation == "mean" for rule in rules)
    return {leaf: planned.settings for leaf, planned in loaded["tasks"].items()}, is_pooled


def load_leaf(name: str, of: str, config: Config, entry: Entry, folder: Path | None, seed: int, fewshot: int | None) -> Leaf:
    """The task with its data.

    Raises:
        CorpusError: they cannot be had.
    """
    if fewshot is not None and config.get("num_fewshot") != 0:
        config["num_fewshot"] = fewshot
    config["num_fewshot"] = int(config.get("num_fewshot") or 0)
    founds = {} if config.get("custom_dataset") else found_files(folder, name, entry, config["num_fewshot"])
    scored = scored_split(entry)
    source: dict[str, Any] = {"hub": "/".join(filter(None, (entry.dataset, entry.config)))} if entry.dataset else {"made": name}
    if scored in founds:
        config = _mirrored(name, config, entry, founds)
        source = {"files": {found.name: _digest(found.file) for found in founds.values()}}
    task = _built(name, config, source)
    return Leaf(name, of, task, [], len(task.eval_docs), source, FEWSHOT_SEED + seed)


def found_files(folder: Path | None, name: str, entry: Entry, examples: int) -> dict[str, Found]:
    """Split → file, of what is scored and of what examples are drawn from, as far as the mirror has them."""
    wanted = {scored_split(entry), example_split(entry) if examples else None} - {None}
    founds = {split: find(folder, name, entry, split) for split in sorted(map(str, wanted))}
    return {split: found for split, found in founds.items() if found is not None}


def _mirrored(name: str, config: Config, entry: Entry, founds: Mapping[str, Found]) -> Config:
    """The configuration, reading the mirror's rows; splits that the mirror lacks are none.

    Raises:
        CorpusError: few-shot examples are wanted, and the split that they come from is not there.
    """
    examples = example_split(entry)
    own_examples = isinstance(config.get("fewshot_config"), dict) and config["fewshot_config"].get("samples") is not None
    if config["num_fewshot"] and examples not in founds and not own_examples:
        beside = next(iter(founds.values())).name
        raise CorpusError(
            f"task '{name}' draws its {config['num_fewshot']} examples from split '{examples}', and the mirror has only {beside}",
            hint=f"put split '{examples}' beside it, or ask without examples: fewshot=0",
        )
    absent = {f"{key}_split": None for key in ("training", "validation", "fewshot") if entry.splits.get(key) not in founds}
    rows = {split: found.rows() for split, found in founds.items()}
    return {**config, **absent, "dataset_kwargs": None, "custom_dataset": lambda **_: _datasets(name, rows)}


def _datasets(name: str, rows: Mapping[str, list[Config]]) -> dict[str, Any]:
    from datasets import Dataset

    try:
        return {split: Dataset.from_list(of) for split, of in rows.items()}
    except Exception as error:  # Arrow's many kinds: a column that is a number in one row and text in another
        raise CorpusError(
            f"the rows of task '{name}' do not form a table: {told(error) or 'no message'}", hint="give every row the same columns"
        ) from error


def _built(name: str, config: Config, source: Mapping[str, Any]) -> Task:
    """The harness's task of a whole configuration.

    Raises:
        CorpusError: its data cannot be had, or are not what it expects.
    """
    from lm_eval.tasks import TaskManager

    try:
        return TaskManager(include_defaults=False).load({k: v for k, v in config.items() if k not in ("tag", "group")})["tasks"][name]
    except KvbenchError:
        raise
    except Exception as error:  # whatever the hub, the file systems behind it and the task's own functions raise
        if isinstance(error, ConnectionError):
            stop_asking()
        where = source.get("hub") or ", ".join(source.get("files", ())) or "what it makes"
        raise CorpusError(f"task '{name}' cannot read {where}: {type(error).__name__}: {told(error) or 'no message'}", hint=None) from error


def tokenizer_folder(tokenizer: Any) -> Path:
    """The tokenizer as files, for tasks that load one by name."""
    folder = cache_folder() / "harness" / "tokenizers" / str(hash_tokenizer(tokenizer))
    if not (folder / "tokenizer_config.json").is_file():
        tokenizer.save_pretrained(folder)
    return folder


_DIGESTS: dict[tuple[Path, int], str] = {}


def _digest(file: Path) -> str:
    """sha256 of a file, read once a process."""
    key = (file, file.stat().st_mtime_ns)
    if key not in _DIGESTS:
        _DIGESTS[key] = sha256_of(file)
    return _DIGESTS[key]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the harness's remarks on each configuration, and without progress bars of each table."""
    import datasets

    log = logging.getLogger("lm_eval")
    level, bars = log.level, datasets.is_progress_bar_enabled()
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
