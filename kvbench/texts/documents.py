"""Text as it is read: files of documents, and documents joined no further than somebody asks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import orjson

from kvbench.errors import CorpusError
from kvbench.files import read_text, without_mark

STREAM_BLOCK = 64
"""Documents that are read at once from a stream."""


class Text:
    """Documents joined as they are read, no further than somebody asks.

    Args:
        source: Where they come from, for the record.
        documents: Read once, lazily.
        join: What stands between two of them.
        streamed: ``digest`` covers what was read instead of reading to the end.
    """

    def __init__(self, source: str, documents: Iterable[str], join: str, *, streamed: bool = False) -> None:
        self.source, self.join, self.streamed = source, join, streamed
        self._documents = iter(documents)
        self._first = True
        self._ended = False
        self.read = ""

    def at_least(self, characters: int) -> bool:
        """Read until ``self.read`` holds so many characters; ``False`` if the text ends first."""
        while len(self.read) < characters and not self._ended:
            block = list(islice(self._documents, STREAM_BLOCK))
            self._ended = not block
            self._append(block)
        return len(self.read) >= characters

    def _append(self, block: list[str]) -> None:
        if block:
            self.read += ("" if self._first else self.join) + self.join.join(block)
            self._first = False

    @property
    def ended(self) -> bool:
        """Whether ``self.read`` is the whole text."""
        return self._ended

    def digest(self) -> str:
        """sha256 of the whole text, or of what was read of a stream."""
        while not self.streamed and not self._ended:
            self.at_least(2 * len(self.read) + 1)
        return hashlib.sha256(self.read.encode()).hexdigest()


def lines_of(rows: Iterable[str]) -> Iterator[str]:
    """Non-blank lines, each ending in one newline."""
    for row in rows:
        for line in row.split("\n"):
            if line.strip():
                yield f"{line}\n"


def _read_text(path: Path) -> Iterator[str]:
    """A whole file as one document; line ends become ``\\n``."""
    try:
        yield read_text(path)
    except UnicodeDecodeError as error:
        raise CorpusError(f"'{path.name}' is not UTF-8 text (byte {error.start})", hint="convert it to UTF-8") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_jsonl(path: Path) -> Iterator[str]:
    """The ``text`` field of each line."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                row = without_mark(line) if number == 1 else line
                if row.strip():
                    yield _text_field(path, number, row)
    except OSError as error:
        raise _unreadable(path, error) from error


def _text_field(path: Path, number: int, line: bytes) -> str:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise CorpusError(f"'{path.name}' line {number} is not JSON: {error}", hint="write one JSON object a line") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise CorpusError(f"'{path.name}' line {number} has no field \"text\" that holds a string", hint='write {"text": "..."}')
    return text


def _unreadable(path: Path, error: OSError) -> CorpusError:
    return CorpusError(f"'{path}' cannot be read: {error.strerror or error}", hint="check --corpus")


READERS: dict[str, Callable[[Path], Iterator[str]]] = {".txt": _read_text, ".raw": _read_text, ".jsonl": _read_jsonl}
