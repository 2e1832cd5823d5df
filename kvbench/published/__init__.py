"""Published figures, each with the place where it is printed: what a run's own figures are shown beside.

A file of ``kvbench/published/`` holds the figures of one source: ``[source]``, ``[defaults]`` that hold for every entry which
does not say otherwise, and ``[[entries]]``. Figures keep the digits in which they are printed, since the last of them
says how exactly a figure is known. Nothing here is measured by kvbench, and nothing is from memory: whoever adds a
figure has read it at the place that the entry names.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from kvbench.errors import PublishedError, UsageError, nearest
from kvbench.files import read_text
from kvbench.spec import MethodSpec

METRICS: Mapping[str, tuple[str, ...]] = {
    "perplexity": ("1",),
    "kl": ("nats",),
    "accuracy": ("%", "1"),
    "score": ("%", "1"),
    "compression_factor": ("×",),
    "compression_ratio": ("1", "%"),
    "throughput": ("×",),
    "peak_memory": ("×",),
    "attention_speed": ("×",),
}
"""What a figure may be of, and the units that it may have. ``×`` is "times better than the source's own baseline"."""
PROTOCOLS: Mapping[str, str] = {
    "prefill": "the prompt attends to itself uncompressed and is compressed once; what follows reads the compressed cache",
    "streaming": "compressed from the first token on, token by token",
    "one-pass": "one forward over the whole text, whose attention already reads compressed keys and values",
    "generation": "free-running generation, timed or weighed",
    "unstated": "what was read does not say",
}
QUESTIONS = ("", "hidden", "visible")
"""Whether compression could see the question; empty where that does not arise or is not said."""


@dataclass(frozen=True)
class Source:
    """Where figures are printed.

    Attributes:
        title: Of the paper or page. arxiv: Its number, ``2402.02750``. url: Where it has none.
        version: Revision, venue or date, as far as known.
        via: What was read in its place, where the source itself was not.
    """

    title: str
    arxiv: str = ""
    url: str = ""
    version: str = ""
    via: str = ""

    @property
    def where(self) -> str:
        """``arXiv 2402.02750`` or the address."""
        return f"arXiv {self.arxiv}" if self.arxiv else self.url


@dataclass(frozen=True)
class Entry:
    """One published figure.

    Attributes:
        method: kvbench's method with the parameters that come nearest; empty where it has none.
        exact: Whether ``method`` says the whole setting. Otherwise the two are never taken for the same.
        model: As the source names it. metric: One of ``METRICS``. task: The data: a corpus (``wikitext2``), a task
            (``gsm8k``), or a suite's part (``longbench/average``).
        value, baseline: As printed; the baseline is the same source's figure without compression.
        setting: The source's own words for bits, ratio, rank or budget. context: Tokens, if it is one length.
        protocol: One of ``PROTOCOLS``. scored: How it was measured, in plain words.
        question: One of ``QUESTIONS``. harness: Whose prompts and scoring (``lm-eval``, ``LongBench``), if any.
        hardware: Where times and memory were taken.
        place: Table, section or heading. via: As ``Source.via``, for this entry. note: What a reader must know.
    """

    model: str
    metric: str
    value: Decimal
    unit: str
    setting: str
    protocol: str
    scored: str
    place: str
    source: Source
    method: str = ""
    exact: bool = True
    task: str = ""
    baseline: Decimal | None = None
    context: int | None = None
    question: str = ""
    harness: str = ""
    hardware: str = ""
    via: str = ""
    note: str = ""

    @property
    def spec(self) -> MethodSpec | None:
        return MethodSpec.parse(self.method) if self.method else None

    @property
    def figure(self) -> str:
        """What the figure is of: ``perplexity · pg19``."""
        return " · ".join(part for part in (self.metric, self.task) if part)

    @property
    def cited(self) -> str:
        """Source, revision and place, and what was read in its stead."""
        version, via = self.source.version, self.via or self.source.via
        told = [self.source.title, self.source.where, *([version] if version else []), self.place]
        return ", ".join(told) + (f"; read in: {via}" if via else "")


_KEYS = {f.name for f in fields(Entry)} - {"source"}
_TABLES = {"source", "defaults", "entries"}


def load(folder: Path | None = None) -> tuple[Entry, ...]:
    """Every entry of the ``*.toml`` files in ``folder`` (kvbench's own by default), file by file.

    Raises:
        PublishedError: a file that is not TOML, or an entry that lacks a source or place or has a value that cannot be
            used; names file, entry and field.
    """
    paths = sorted((folder or Path(__file__).parent).glob("*.toml"))
    return tuple(entry for path in paths for entry in _read(path))


def _read(path: Path) -> list[Entry]:
    try:
        found = tomllib.loads(read_text(path), parse_float=Decimal)
    except (ValueError, RecursionError, OSError) as error:  # no TOML, no UTF-8, or too long a number or too deep a nesting
        raise PublishedError(f"published figures {path.name} cannot be read: {error}", hint="correct the file") from error
    _check_keys(path.name, found, _TABLES)
    source = _source(path.name, found.get("source"))
    defaults, entries = found.get("defaults", {}), found.get("entries")
    if not isinstance(defaults, dict) or not isinstance(entries, list) or not entries:
        raise PublishedError(f"published figures {path.name} have no entries", hint="write [[entries]] and, if any, [defaults]")
    _check_keys(f"{path.name}, [defaults]", defaults, _KEYS)
    return [_entry(f"{path.name}, entry {place}", defaults, data, source) for place, data in enumerate(entries, 1)]


def _source(file: str, data: Any) -> Source:
    if not isinstance(data, dict):
        raise PublishedError(f"published figures {file} have no source", hint="write [source] with title and arxiv or url")
    where = f"{file}, [source]"
    _check_keys(where, data, {f.name for f in fields(Source)})
    source: Source = _converted(where, data, Source)
    for name, value in (("title", source.title), ("arxiv or url", source.where)):
        if not value.strip():
            raise PublishedError(f"published figures {where}: no {name}", hint="a figure without its source is not shown")
    return source


def _entry(where: str, defaults: Mapping[str, Any], data: Any, source: Source) -> Entry:
    if not isinstance(data, dict):
        raise PublishedError(f"published figures {where} is no table", hint="write [[entries]]")
    _check_keys(where, data, _KEYS)
    merged = {**defaults, **data}
    where += f" ({merged.get('method') or 'no method'}, {merged.get('task') or merged.get('metric')})"
    blank = {"title": source.title, "arxiv": source.arxiv, "url": source.url}
    found: Entry = _converted(where, {**merged, "source": blank}, Entry)
    entry = replace(found, source=source)
    _check_entry(where, entry)
    return entry


def _check_entry(where: str, entry: Entry) -> None:
    known: Sequence[tuple[str, str, Sequence[str]]] = (
        ("metric", entry.metric, tuple(METRICS)),
        ("unit", entry.unit, METRICS.get(entry.metric, ())),
        ("protocol", entry.protocol, tuple(PROTOCOLS)),
        ("question", entry.question, QUESTIONS),
    )
    for name, value, allowed in known:
        if value not in allowed:
            raise PublishedError(f"published figures {where}: '{name}' is '{value}'", hint=f"use one of {', '.join(allowed)}")
    for name in ("model", "setting", "scored", "place"):
        if not getattr(entry, name).strip():
            raise PublishedError(f"published figures {where}: '{name}' is empty", hint="say what the source says, or that it does not")
    if not all(value is None or value.is_finite() for value in (entry.value, entry.baseline)):
        raise PublishedError(f"published figures {where}: 'value' and 'baseline' must be finite numbers")
    try:
        _ = entry.spec
    except UsageError as error:
        raise PublishedError(f"published figures {where}: 'method': {error.message}", hint=error.hint) from error


def _check_keys(where: str, data: Mapping[str, Any], known: set[str]) -> None:
    for key in data:
        if key not in known:
            near = nearest(key, known)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            raise PublishedError(f"published figures {where}: unknown '{key}'{meant}", hint=f"known: {', '.join(sorted(known))}")


def _converted(where: str, data: Mapping[str, Any], cls: type[Any]) -> Any:
    try:
        return msgspec.convert(data, cls)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        field = f"'{place.rstrip('`')}': " if place else ""
        raise PublishedError(f"published figures {where}: {field}{reason}", hint="correct the file") from error
