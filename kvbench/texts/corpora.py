"""Texts by name, and the windows of tokens that are cut from them (:mod:`kvbench.texts.windows`).

A corpus is looked for in the mirror folder first (``--data-dir``, else ``KVBENCH_DATA``), then on the hub. Its documents are
joined, tokenised from the start as far as is needed, and cut into consecutive runs of context + continuation tokens. Where
texts begin with BOS (``--bos``), each window does: its first token is BOS, and one token less of the text is in it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench.errors import CorpusError, UnknownName, told
from kvbench.models.weights import Progress
from kvbench.spec import RunSpec
from kvbench.texts.documents import READERS, Text, lines_of
from kvbench.texts.tokens import Reader, reader_of
from kvbench.texts.windows import Cut, Windows

__all__ = ["BETWEEN_DOCUMENTS", "CORPORA", "ESSAYS", "Corpus", "Windows", "load_windows", "mirror_folder", "mirrored", "open_text"]

MARGIN = 256
"""Tokens beyond the last window before tokenising stops: the end of a cut text may be split differently, its start is not."""

BETWEEN_DOCUMENTS = "\n\n"
ESSAYS = "haystack/paul_graham_essays.txt"
"""The usual filler of needle tests, where a mirror holds it."""


@dataclass(frozen=True)
class Corpus:
    """A text by name.

    Attributes:
        title: One line for ``kvbench list corpora``.
        mirror: Its file under the mirror folder, in the hub's own columns.
        hub: Arguments of ``datasets.load_dataset``, or ``None`` for text that ships with Python.
        join: What stands between documents (rows).
        skip_blank: Leave blank rows out.
        streamed: Read only as many documents as are needed; ``content_hash`` then covers what was read.
    """

    title: str
    mirror: str | None = None
    hub: tuple[str, str | None, str] | None = None
    join: str = BETWEEN_DOCUMENTS
    skip_blank: bool = False
    streamed: bool = False


CORPORA: dict[str, Corpus] = {
    "language_reference": Corpus("The Python language reference that ships with Python; no download; its text differs by Python version"),
    # The hub's rows are the file's lines, "\n" included, and blank ones among them; mirrors differ in blank lines and line
    # ends. Non-blank lines end to end, each with one "\n", are the same text from either.
    "wikitext2": Corpus(
        "WikiText-2, raw, test: Wikipedia articles, one document",
        mirror="wikitext2/wiki.test.raw", hub=("Salesforce/wikitext", "wikitext-2-raw-v1", "test"), join="", skip_blank=True,
    ),
    "c4": Corpus(
        "C4, English, validation: web pages, streamed",
        mirror="c4/validation.jsonl", hub=("allenai/c4", "en", "validation"), streamed=True,
    ),
    "pg19": Corpus(
        "PG-19, test: whole books, streamed",
        mirror="pg19/test.jsonl", hub=("emozilla/pg19", None, "test"), streamed=True,
    ),
}  # fmt: skip


def load_windows(spec: RunSpec, tokenizer: Any | None, progress: Progress) -> Windows:
    """Cut ``spec.samples`` windows of context + continuation tokens from the corpus.

    Raises:
        UnknownName: no such corpus.
        CorpusError: the text cannot be found or read, is too short (says how many samples would fit), or has ids beyond the
            model's embeddings.
        UsageError: ``--bos on`` without a BOS, or a context shorter than what begins a text.
    """
    import torch

    name = spec.corpus.name
    reader = reader_of(tokenizer, spec.corpus.bos)
    if reader is None:
        raise CorpusError(
            f"corpus '{name}' cannot be read: this model has no tokenizer here", hint="with --random-weights use --evals speed,memory"
        )
    cut = Cut.of(spec, reader)
    progress(f"reading {name}", 0, 0)
    text = open_text(name, spec.corpus.data_dir)
    ids = _first_tokens(text, reader, cut.needed, progress)
    if len(ids) < cut.needed:
        raise _too_short(name, len(ids), cut)
    reader.check(ids[: cut.needed])
    tokens = torch.tensor(cut.rows(ids, reader.head), dtype=torch.long)
    facts = {
        "name": name if name in CORPORA else Path(name).name,
        "source": text.source,
        "nul_characters": text.read.count("\0"),
        "content_hash": text.digest(),
        "tokens_hash": hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest(),
        "join": text.join,
        "bos": bool(reader.head),
        "head": [reader.written(token) for token in reader.head],
        "window": cut.window,
        "stride": cut.stride,
        "samples": spec.samples,
        "tokens_read": len(ids),
        "special_tokens": reader.special_in(ids[: cut.needed]),
    }
    return Windows(tokens, facts, len(reader.head))  # type: ignore[arg-type]


def open_text(name: str, data_dir: str | None) -> Text:
    """The text that a registered name or a ``.txt``/``.jsonl`` path stands for.

    Raises:
        UnknownName: neither.
        CorpusError: its file or the hub cannot be read.
    """
    path = Path(name).expanduser()
    if name not in CORPORA:
        if path.suffix not in READERS:
            raise UnknownName("corpus", name, CORPORA, hint="kvbench list corpora, or name a .txt or .jsonl file")
        return Text(path.name, READERS[path.suffix](path), BETWEEN_DOCUMENTS)
    corpus = CORPORA[name]
    if corpus.hub is None:
        return Text("pydoc_data.topics", _language_reference(), corpus.join)
    file = mirrored(corpus.mirror, data_dir) if corpus.mirror else None
    rows = READERS[file.suffix](file) if file else _hub_rows(name, corpus)
    source = corpus.mirror if file else "/".join(filter(None, corpus.hub))
    if corpus.skip_blank:
        rows = lines_of(rows)
    return Text(str(source), rows, corpus.join, streamed=corpus.streamed)


def _first_tokens(text: Text, reader: Reader, needed: int, progress: Progress) -> list[int]:
    """At least ``needed`` ids of the text's own from its start, or all there are; the same as tokenising the whole text gives."""
    characters = 5 * (needed + MARGIN)
    while True:
        text.at_least(characters)
        whole = text.ended and characters >= len(text.read)
        ids = reader.own(text.read[:characters])
        progress("tokenising", min(len(ids), needed), needed)
        if whole or len(ids) >= needed + MARGIN:
            return ids if whole else ids[: len(ids) - MARGIN]
        characters = int(characters * max(1.2, 1.1 * (needed + MARGIN) / max(1, len(ids))))


def _too_short(name: str, have: int, cut: Cut) -> CorpusError:
    fits = cut.fits(have)
    hint = f"use --samples {fits}" if fits else "use a smaller --context or --continuation, or a longer --corpus"
    return CorpusError(f"corpus '{name}' has {have:,} tokens and {cut.needed:,} are needed", hint=hint)


def _language_reference() -> Iterator[str]:
    from pydoc_data.topics import topics

    return (topics[key] for key in sorted(topics))


def mirror_folder(data_dir: str | None) -> Path | None:
    """The folder of files that stand in for the hub's: ``data_dir``, else ``KVBENCH_DATA``, if either is given.

    Raises:
        CorpusError: it is no folder.
    """
    folder = data_dir or os.environ.get("KVBENCH_DATA")
    if not folder:
        return None
    root = Path(folder).expanduser()
    if not root.is_dir():
        flag = "--data-dir" if data_dir else "KVBENCH_DATA"
        raise CorpusError(f"{flag} names '{folder}', which is no folder", hint=f"correct {flag}, or leave it out")
    return root


def mirrored(file: str, data_dir: str | None) -> Path | None:
    """A file of the mirror folder, if it is there."""
    root = mirror_folder(data_dir)
    return root / file if root is not None and (root / file).is_file() else None


def _hub_rows(name: str, corpus: Corpus) -> Iterator[str]:
    """The hub dataset's ``text`` column, row by row."""
    assert corpus.hub is not None
    repository, configuration, split = corpus.hub
    try:
        from datasets import load_dataset

        rows = iter(load_dataset(repository, configuration, split=split, streaming=corpus.streamed))
        yield from (row["text"] for row in rows)
    except Exception as error:  # the library raises what its many file systems raise
        raise CorpusError(
            f"corpus '{name}' cannot be read from the hub ({repository}): {told(error) or type(error).__name__}",
            hint=f"put {corpus.mirror} into a folder and name it with --data-dir, or use --corpus language_reference",
        ) from error
