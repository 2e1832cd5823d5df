"""Filler text of an exact length with needles at given depths: text and token counts alone, no model.

A haystack is a stretch of running text that ends with a sentence. It begins wherever, to the word, the prompt is as long as
it may be, and needles go between whole sentences.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from kvbench.errors import CorpusError
from kvbench.needles.fillers import Filler

Count = Callable[[str], int]
"""Text → how many tokens it has."""


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, and where: 0 is before the haystack, 1 after it."""

    text: str
    depth: float


@dataclass(frozen=True)
class Haystack:
    """Filler with its needles.

    Attributes:
        text: Ends without a space. depths: Where each needle came to stand, as a fraction of the filler's characters, in the
            order in which they were given.
    """

    text: str
    depths: tuple[float, ...]


def last_sentence(filler: Filler, length: int, draw: random.Random) -> int:
    """Index of a sentence that a haystack of ``length`` tokens may end with, drawn from all that have a quarter more before them."""
    first = min(bisect_left(filler.ends, 1.25 * length * filler.characters_per_token), len(filler.ends) - 1)
    return draw.randrange(first, len(filler.ends))


def place(filler: Filler, needles: Sequence[Needle], length: int, last: int, count: Count) -> Haystack:
    """The longest haystack up to sentence ``last`` of which ``count(text)`` is at most ``length``.

    ``count`` is told the haystack and counts the whole prompt, so that what goes around it is taken account of.

    Raises:
        CorpusError: the filler is too short.
        ValueError: the needles alone are too long.
    """
    around = count(insert([], needles).text)
    if around > length:
        raise ValueError(f"needles, question and answer take {around} tokens, and {length} are to hold them")
    reach = int((length - around) * filler.characters_per_token)
    start = _earliest(filler, last, reach, lambda at: count(insert(_between(filler, at, last), needles).text) <= length)
    return insert(_between(filler, start, last), needles)


def insert(sentences: Sequence[str], needles: Sequence[Needle]) -> Haystack:
    """Needles between sentences, each at the boundary nearest to its depth; those at one boundary stand in the given order."""
    ends = [0, *accumulate(map(len, sentences))]
    places = [min(range(len(ends)), key=lambda i: abs(ends[i] - needle.depth * ends[-1])) for needle in needles]
    text = ""
    for index in range(len(ends)):
        for needle, at in zip(needles, places, strict=True):
            if at == index:
                text += f"{'' if not text or text[-1].isspace() else ' '}{needle.text} "
        text += "".join(sentences[index : index + 1])
    return Haystack(text.rstrip(), tuple(ends[at] / max(1, ends[-1]) for at in places))


def _between(filler: Filler, start: int, last: int) -> list[str]:
    """Sentences from character ``start``, the first one perhaps in part, up to and with the ``last``."""
    first = bisect_left(filler.ends, start + 1)
    if first > last:
        return []
    head = filler.text[start : filler.ends[first]]
    return [head, *filler.sentences[first + 1 : last + 1]]


def _earliest(filler: Filler, last: int, reach: int, fits: Callable[[int], bool]) -> int:
    """The earliest start of a word at which what follows up to the ``last`` sentence still fits.

    Raises:
        CorpusError: all of it fits, so that the filler is too short.
    """
    words, end = filler.starts_of_words, filler.ends[last]
    high = bisect_left(words, end)
    low = bisect_left(words, end - 1.1 * reach)
    while fits(words[low]):
        if low == 0:
            raise CorpusError("the filler is shorter than its haystack", hint="needle:filler=... a longer text")
        high, low = low, max(0, low - (high - low) - 1)
    while high - low > 1:  # low does not fit, high does
        middle = (low + high) // 2
        low, high = (low, middle) if fits(words[middle]) else (middle, high)
    return words[high] if high < len(words) else end
