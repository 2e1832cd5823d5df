"""Files that stand in for hub datasets, in the hub's own columns, so that one task reads both.

A mirror is the folder that ``--data-dir`` or ``KVBENCH_DATA`` names. A split's rows are looked for where ``LAYOUTS`` says
for well-known datasets, and for any task in ``<task>/<split>.jsonl`` (``.json``, ``.parquet``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from kvbench.errors import CorpusError, told
from kvbench.files import read_bytes
from kvbench.harness.index import Entry

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Layout:
    """Where a hub dataset's rows stand.

    Attributes:
        file: Path without its suffix; ``{split}``, ``{config}`` are the hub's, ``{family}`` is the config's in ``families``.
        column: A file holds the rows of several configs, and this column says of which.
        families: Configs that are known, and what they are called here; empty if any will do.
        only_split: The files are of this split.
        complete: Adds columns that a mirror may lack and that follow from those it has.
    """

    file: str
    column: str | None = None
    families: Mapping[str, str] = field(default_factory=dict)
    only_split: str | None = None
    complete: Callable[[Row], Row] | None = None


def _hellaswag(row: Row) -> Row:
    """``ctx`` as the hub splits it: whole sentences are ``ctx_a``, the beginning of one at its end is ``ctx_b``."""
    if "ctx_a" in row or "ctx" not in row:
        return row
    text = row["ctx"]
    cut = len(text) if text.rstrip().endswith((".", "!", "?")) else max(text.rfind(f"{mark} ") for mark in ".!?") + 1
    return {**row, "ctx_a": text[:cut] if cut else text, "ctx_b": text[cut:].strip() if cut else ""}


def _longbench(row: Row) -> Row:
    """THUDM's column ``input`` is ``question`` in the hub dataset that the harness reads."""
    return {**row, "question": row["input"]} if "question" not in row and "input" in row else row


def _longbench2(row: Row) -> Row:
    """THUDM's ``choice_A`` to ``choice_D`` are ``choices``, and the answer's letter is its place."""
    if "choices" in row or "choice_A" not in row:
        return row
    return {**row, "choices": [row[f"choice_{letter}"] for letter in "ABCD"], "answer": "ABCD".index(row["answer"])}


_MMLU = Layout("mmlu/{split}", column="subject")
_ARC = Layout("{family}/{split}", families={"ARC-Challenge": "arc_challenge", "ARC-Easy": "arc_easy"})
_PIQA = Layout("piqa/{split}")
_LONGBENCH = Layout("longbench/{config}", only_split="test", complete=_longbench)
LAYOUTS: Mapping[str, Layout] = {
    "openai/gsm8k": Layout("gsm8k/{split}", families={"main": "gsm8k"}),
    "cais/mmlu": _MMLU,
    "hails/mmlu_no_train": _MMLU,
    "allenai/ai2_arc": _ARC,
    "Rowan/hellaswag": Layout("hellaswag/{split}", complete=_hellaswag),
    "allenai/winogrande": Layout("winogrande/{split}"),
    "baber/piqa": _PIQA,
    "ybisk/piqa": _PIQA,
    "Xnhyacinth/LongBench": _LONGBENCH,
    "THUDM/LongBench": _LONGBENCH,
    "zai-org/LongBench": _LONGBENCH,
    "recursal/longbench-v2": Layout("longbench2/{config}", only_split="train", complete=_longbench2),
}
"""Hub dataset → its place. A config that ``families`` does not know is not in the mirror."""


PLAIN = Layout("{task}/{split}")


@dataclass(frozen=True)
class Found:
    """One split's rows in a mirror.

    Attributes:
        file: Which. name: The same, relative to the mirror.
        column, value: Only rows in which the column has this value; every row if there is no column.
    """

    file: Path
    name: str
    layout: Layout
    value: str | None = None

    def rows(self) -> list[Row]:
        """Its rows, in the file's order.

        Raises:
            CorpusError: says which line is broken, or that none is left.
        """
        rows = read(self.file)
        column, complete = self.layout.column, self.layout.complete
        if column is not None:
            rows = [row for row in rows if row.get(column) == self.value]
        if not rows:
            what = f" with {column}={self.value}" if column is not None else ""
            raise CorpusError(f"{self.name} has no rows{what}", hint=f"complete {self.name}")
        return [complete(row) for row in rows] if complete is not None else rows


def find(folder: Path | None, task: str, entry: Entry, split: str) -> Found | None:
    """The file that stands in for a task's split, if the mirror has one. (Tasks that make their own data need none.)"""
    if folder is None or entry.dataset is None:
        return None
    layout, config = LAYOUTS.get(entry.dataset), entry.config or ""
    if layout is not None and split == (layout.only_split or split) and (config in layout.families or not layout.families):
        found = _file(folder, layout.file.format(split=split, config=config, family=layout.families.get(config)), layout, config)
        if found is not None:
            return found
    return _file(folder, f"{task}/{split}", PLAIN)


def _file(folder: Path, name: str, layout: Layout, config: str | None = None) -> Found | None:
    for suffix in SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return Found(folder / f"{name}{suffix}", f"{name}{suffix}", layout, config if layout.column else None)
    return None


def scored_split(entry: Entry) -> str | None:
    """The split whose questions are asked: the test split, else the validation split."""
    return entry.splits.get("test") or entry.splits.get("validation")


def example_split(entry: Entry) -> str | None:
    """The split that few-shot examples are drawn from, by the harness's rule."""
    return next((entry.splits[key] for key in ("fewshot", "training", "validation", "test") if key in entry.splits), None)


def check_files(founds: Iterable[Found]) -> None:
    """Read each file once.

    Raises:
        CorpusError: the first broken line, by file and number, or a file without the rows that are needed.
    """
    for found in founds:
        found.rows()


def read(file: Path) -> list[Row]:
    """All rows of a ``.jsonl``, ``.json`` (a list of rows) or ``.parquet`` file.

    Raises:
        CorpusError: it cannot be read; says at which line.
    """
    try:
        status = file.stat()
        return _read(file, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise CorpusError(f"'{file}' cannot be read: {error.strerror}", hint="check --data-dir") from error


@lru_cache(maxsize=16)
def _read(file: Path, changed: int, size: int) -> list[Row]:
    if file.suffix == ".jsonl":
        return list(_lines(file))
    if file.suffix == ".parquet":
        return _parquet(file)
    rows = _json(file, read_bytes(file), "")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CorpusError(f"{file.name} is no list of objects", hint="write it as JSON lines")
    return rows


def _lines(file: Path) -> Iterator[Row]:
    for number, line in enumerate(read_bytes(file).split(b"\n"), 1):
        if line.strip():
            row = _json(file, line, f", line {number}")
            if not isinstance(row, dict):
                raise CorpusError(f"{_place(file)}, line {number}: not an object with columns", hint="correct that line")
            yield row


def _json(file: Path, text: bytes, where: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise CorpusError(f"{_place(file)}{where}: broken JSON ({error.msg})", hint="correct that line") from error


def _place(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _parquet(file: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[Row] = pq.read_table(file).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{_place(file)}: {told(error) or 'not a parquet file'}", hint="write it again, or as JSON lines") from error
    return rows
