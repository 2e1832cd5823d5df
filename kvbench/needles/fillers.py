"""Filler text for haystacks: where it comes from, and its sentences.

White space is evened out to single spaces, as RULER does with its essays (Hsieh et al. 2024, "RULER: What's the real
context size of your long-context language models?").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from kvbench.errors import CorpusError
from kvbench.spec import RunSpec
from kvbench.texts.corpora import BETWEEN_DOCUMENTS, CORPORA, ESSAYS, mirrored, open_text
from kvbench.texts.documents import READERS, Text

HAYSTACK = "haystack"
"""The name of the usual filler of needle tests, the essays that a mirror may hold."""
OWN = "corpus"
"""The run's own text."""
CLOSING = "\"')\\]\u2019\u201d"
SENTENCE = re.compile(rf".+?(?:[.!?\u2026]+[{CLOSING}]*(?=\s|$)\s*|[\u3002\uff01\uff1f]+[{CLOSING}\u300d\u300f\uff09]*|$)", re.DOTALL)
"""Up to a full stop and a space, or a full-width stop, each with what closes after it."""
LONGEST_SENTENCE = 400
"""Characters after which what has no end (a table, code) is cut at the next space."""
LONG_STRETCH = re.compile(rf".{{1,{LONGEST_SENTENCE}}}\s|.{{1,{2 * LONGEST_SENTENCE}}}", re.DOTALL)
WORD = re.compile(r"\S{1,24}")
"""A place where a haystack may begin; a script without spaces may be cut every 24 characters."""
POOL = 16
"""So many times the longest prompt is read, for haystacks to be drawn from."""


@dataclass(frozen=True)
class Filler:
    """Sentences in a row, each with the space behind it.

    Attributes:
        tokens: About how many tokens all of them have (counted piece by piece).
    """

    sentences: tuple[str, ...]
    tokens: int

    @cached_property
    def text(self) -> str:
        return "".join(self.sentences)

    @cached_property
    def ends(self) -> list[int]:
        """Where each sentence ends, characters."""
        return list(accumulate(map(len, self.sentences)))

    @cached_property
    def starts_of_words(self) -> list[int]:
        return [match.start() for match in WORD.finditer(self.text)]

    @property
    def characters_per_token(self) -> float:
        return len(self.text) / max(1, self.tokens)


def open_filler(name: str, spec: RunSpec) -> Text:
    """The text that a filler's name stands for.

    Raises:
        UnknownName: it stands for none.
        CorpusError: its file or the hub cannot be read.
    """
    if name == OWN:
        name = spec.corpus.name
    if name != HAYSTACK:
        return open_text(name, spec.corpus.data_dir)
    path = mirrored(ESSAYS, spec.corpus.data_dir)
    if path is None:
        raise CorpusError(
            f"the filler '{HAYSTACK}' is a mirror's {ESSAYS}, which is not there",
            hint="put it into a folder and name that with --data-dir or KVBENCH_DATA, or leave filler out",
        )
    return Text(ESSAYS, READERS[path.suffix](path), BETWEEN_DOCUMENTS)


def check_filler(name: str, spec: RunSpec) -> None:
    """Refuse a filler that is not there or, if it is a file, no text; nothing is fetched.

    Raises:
        UnknownName, CorpusError: as :func:`open_filler`.
    """
    name = spec.corpus.name if name == OWN else name
    text = open_filler(name, spec)
    if name in CORPORA:
        return
    if name != HAYSTACK and not Path(name).expanduser().is_file():
        raise CorpusError(f"the filler '{name}' is not there", hint="correct needle:filler=..., or leave it out")
    text.digest()  # to the end, for what cannot be read
    if not text.read.strip():
        raise CorpusError(f"the filler '{name}' is empty", hint="needle:filler=... another text")


def read_filler(text: Text, longest: int, counts: Callable[[Sequence[str]], list[int]]) -> Filler:
    """As much of ``text`` as prompts of ``longest`` tokens can make use of.

    Args:
        counts: Tokens of each of several texts.

    Raises:
        CorpusError: the text has fewer than ``longest`` tokens.
    """
    characters = 5 * POOL * longest
    while True:
        text.at_least(characters)
        sentences = split_sentences(text.read[:characters])
        tokens = sum(counts(sentences)) if sentences else 0
        if tokens >= longest:
            return Filler(tuple(sentences), tokens)
        if text.ended and characters >= len(text.read):
            raise CorpusError(
                f"the filler {text.source} has {tokens:,} tokens, and the longest haystack needs {longest:,}",
                hint="needle:filler=... a longer text, or needle:lengths=... shorter ones",
            )
        characters *= 2


def split_sentences(text: str) -> list[str]:
    """Sentences with the space behind them; put together again they are ``text`` with single spaces."""
    even = " ".join(text.split())
    found = (match.group() for match in SENTENCE.finditer(even))
    return [part for sentence in found for part in _parts(sentence)]


def _parts(sentence: str) -> list[str]:
    return [sentence] if len(sentence) <= LONGEST_SENTENCE else LONG_STRETCH.findall(sentence)
