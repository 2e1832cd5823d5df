"""Published figures, each with the place where it is printed: what a run's own figures are shown beside.

A file of ``kvbench/published/`` holds the figures of one source: ``[source]``, ``[defaults]`` that hold for every entry which
does not say otherwise, and ``[[entries]]``. Figures keep the digits in which they are printed, since the last of them
says how exactly a figure is known. Nothing here is measured by kvbench, and nothing is from memory: whoever adds a
figure has read it at the place that the entry names.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, ValidationError, convert

from kvbench.errors import PublishedError, UsageError
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
Protocol = Literal["prefill", "streaming", "one-pass", "generation", "unstated"]
"""What reads the compressed cache: what follows a prompt that attended to itself uncompressed (``prefill``); every token from
the first on (``streaming``); the whole text in one forward (``one-pass``); text that is freely written (``generation``)."""
Words = Annotated[str, Meta(pattern=r"\S")]


class Source(Struct, frozen=True, forbid_unknown_fields=True):
    """Where figures are printed.

    Attributes:
        title: Of the paper or page. arxiv: Its number, ``2402.02750``. url: Where it has none.
        version: Revision, venue or date, as far as known.
        via: What was read in its place, where the source itself was not.
    """

    title: Words
    arxiv: str = ""
    url: str = ""
    version: str = ""
    via: str = ""

    def __post_init__(self) -> None:
        if not self.where.strip():
            raise ValueError("no arxiv or url: a figure without its source is not shown")

    @property
    def where(self) -> str:
        """``arXiv 2402.02750`` or the address."""
        return f"arXiv {self.arxiv}" if self.arxiv else self.url


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One published figure.

    Attributes:
        method: kvbench's method with the parameters that come nearest; empty where it has none.
        exact: Whether ``method`` says the whole setting. Otherwise the two are never taken for the same.
        model: As the source names it. metric: One of ``METRICS``. task: The data: a corpus (``wikitext2``), a task
            (``gsm8k``), or a suite's part (``longbench/average``).
        value, baseline: As printed; the baseline is the same source's figure without compression.
        setting: The source's own words for bits, ratio, rank or budget. context: Tokens, if it is one length.
        scored: How it was measured, in plain words.
        question: Whether compression could see the question; empty where that does not arise or is not said.
        harness: Whose prompts and scoring (``lm-eval``, ``LongBench``), if any. hardware: Where times and memory were taken.
        place: Table, section or heading. via: As ``Source.via``, for this entry. note: What a reader must know.
    """

    source: Source
    model: Words
    metric: str
    value: Decimal
    unit: str
    setting: Words
    protocol: Protocol
    scored: Words
    place: Words
    method: str = ""
    exact: bool = True
    task: str = ""
    baseline: Decimal | None = None
    context: int | None = None
    question: Literal["", "hidden", "visible"] = ""
    harness: str = ""
    hardware: str = ""
    via: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.unit not in METRICS.get(self.metric, ()):
            known = ", ".join(f"{metric} ({' or '.join(units)})" for metric, units in METRICS.items())
            raise ValueError(f"'metric' is '{self.metric}' and 'unit' is '{self.unit}'; there are {known}")
        if not all(value is None or value.is_finite() for value in (self.value, self.baseline)):
            raise ValueError("'value' and 'baseline' must be finite numbers")
        try:
            _ = self.spec
        except UsageError as error:
            raise ValueError(f"'method': {error.message}") from error

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


class _File(Struct, forbid_unknown_fields=True):
    source: Source
    entries: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    defaults: dict[str, Any] = {}  # msgspec copies it


def load(folder: Path | None = None) -> tuple[Entry, ...]:
    """Every entry of the ``*.toml`` files in ``folder`` (kvbench's own by default), file by file.

    Raises:
        PublishedError: a file that is not TOML, or an entry that lacks a source or place or has a value that cannot be
            used; names file, entry and field.
    """
    paths = sorted((folder or Path(__file__).parent).glob("*.toml"))
    return tuple(entry for path in paths for entry in _read(path))


def _read(path: Path) -> list[Entry]:
    where = path.name
    try:
        file = convert(tomllib.loads(read_text(path), parse_float=Decimal), _File)
        found = []
        for place, data in enumerate(file.entries, 1):
            where = f"{path.name}, entry {place} ({data.get('method')}, {data.get('task') or data.get('metric')})"
            found.append(convert({"source": file.source, **file.defaults, **data}, Entry))
    except ValidationError as error:
        raise PublishedError(f"published figures {where}: {error}", hint="kvbench/docs/published.md has the fields") from error
    except (ValueError, RecursionError, OSError) as error:  # no TOML, no UTF-8, or too long a number or too deep a nesting
        raise PublishedError(f"published figures {where} cannot be read: {error}", hint="correct the file") from error
    return found
