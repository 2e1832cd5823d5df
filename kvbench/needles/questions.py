"""Needles in a haystack: what is hidden, what is asked, and what an answer is worth. Pure text.

Three kinds, as in RULER (Hsieh et al. 2024); the wording is ours:

===============  =========================================================  ==============================================
kind             hidden                                                     asked
===============  =========================================================  ==============================================
``single``       one value under one name, at the depth                     that value
``multi_key``    that, and values under other names at random depths        the value under the first name
``multi_value``  several values under one name: the first at the depth,     all of them
                 the others evenly between it and the end
===============  =========================================================  ==============================================

How ``multi_value`` spreads its needles is the multi-needle rule of Kamradt's needle test (LLMTest_NeedleInAHaystack).
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from kvbench.needles.haystack import Needle

KINDS = ("single", "multi_key", "multi_value")
VALUES = ("numbers", "words")
DIGITS = 7
FIRST_WORDS = (
    "amber", "brave", "calm", "dusty", "eager", "faint", "gentle", "hollow", "icy", "jolly", "keen", "lunar", "mellow", "noble",
    "olive", "proud", "quiet", "rusty", "silver", "tidy", "urban", "vivid", "windy", "young",
)  # fmt: skip
SECOND_WORDS = (
    "anchor", "bridge", "candle", "desert", "engine", "falcon", "garden", "harbor", "island", "jacket", "kettle", "ladder",
    "meadow", "needle", "orchard", "pepper", "quarry", "river", "saddle", "temple", "umbrella", "valley", "window", "zebra",
)  # fmt: skip
BOUNDARY = "A-Za-z0-9_"
NUMBER = re.compile(rf"(?<![{BOUNDARY}])(?<!\d\.)\d+(?![{BOUNDARY}])(?!\.\d)")
COMPOUND = re.compile(rf"(?<![{BOUNDARY}-])[a-z]+-[a-z]+(?![{BOUNDARY}-])")
GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:([,'\u2019\u00a0\u2009\u202f])\d{3})(?:\1\d{3})*(?![\d])")
HYPHENS = re.compile("[\u2010-\u2015\u2212]")


@dataclass(frozen=True)
class Cell:
    """One prompt: its kind, its length in tokens, the depth in % of what is asked for, and which repetition it is."""

    kind: str
    length: int
    depth: float
    sample: int

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.length}/{self.depth:g}/{self.sample}"

    @classmethod
    def of(cls, key: str) -> Cell:
        kind, length, depth, sample = key.split("/")
        return cls(kind, int(length), float(depth), int(sample))


@dataclass(frozen=True)
class Question:
    """What is hidden and what is asked.

    Attributes:
        intro: Goes before the haystack; it does not say what will be asked. needles: Sentences and their depths.
        question: Goes after the haystack. answer_start: The answer's own first words, so that nothing else is written first.
        expected: Values that a right answer names.
    """

    intro: str
    needles: tuple[Needle, ...]
    question: str
    answer_start: str
    expected: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """What an answer is worth; each in [0, 1].

    Attributes:
        exact: 1 if the first n different values that it names are the n expected ones, in any order.
        graded: Fraction of the expected values that it names anywhere: RULER's ``string_match_all``, on whole values.
        similarity: Mean over expected values of 1 − d/l to the nearest value named: d is Levenshtein's (1966) distance and l
            the longer length. Wrong digits by chance give about 0.3, none 0.
    """

    exact: float
    graded: float
    similarity: float


def ask(cell: Cell, seed: int, count: int, values: str) -> Question:
    """Draw a cell's needles; the same for the same cell, seed, count and values.

    Args:
        count: Needles of kinds that have several.
    """
    draw = random.Random(f"{seed}/{cell.key}/{count}/{values}")
    several = 1 if cell.kind == "single" else count
    names = _distinct(several, draw, " ")
    what, depth = values.removesuffix("s"), cell.depth / 100
    drawn = _values(several, draw, values, avoid=names)
    if cell.kind == "multi_value":
        name, expected = names[0], tuple(drawn)
        hidden = [Needle(f"One secret {what} for {name} is {v}.", depth + (1 - depth) * i / several) for i, v in enumerate(drawn)]
        question = f"What are the {several} secret {what}s for {name} in the text above?"
        return Question(_intro(what, several), tuple(hidden), question, f"The secret {what}s for {name} are", expected)
    depths = [depth, *(draw.random() for _ in names[1:])]
    told = [f"The secret {what} for {name} is {value}." for name, value in zip(names, drawn, strict=True)]
    question = f"What is the secret {what} for {names[0]} in the text above?"
    hidden = [Needle(text, at) for text, at in zip(told, depths, strict=True)]
    return Question(_intro(what, several), tuple(hidden), question, f"The secret {what} for {names[0]} is", (drawn[0],))


def _intro(what: str, count: int) -> str:
    if count == 1:
        return f"A secret {what} is hidden in the text below. Read it and remember the {what}."
    return f"Secret {what}s are hidden in the text below. Read it and remember the {what}s."


def _distinct(count: int, draw: random.Random, join: str) -> list[str]:
    """So many different pairs of words, no word in two of them as long as there are enough."""
    firsts, seconds = (draw.sample(words, len(words)) for words in (FIRST_WORDS, SECOND_WORDS))
    turn = len(firsts)
    return [f"{firsts[i % turn]}{join}{seconds[(i + i // turn) % turn]}" for i in range(count)]


def _values(count: int, draw: random.Random, values: str, avoid: Sequence[str]) -> list[str]:
    if values == "numbers":
        return [str(n) for n in draw.sample(range(10 ** (DIGITS - 1), 10**DIGITS), count)]
    taken = {name.replace(" ", "-") for name in avoid}
    return [pair for pair in _distinct(count + len(taken), draw, "-") if pair not in taken][:count]


def score(answer: str, expected: Sequence[str]) -> Score:
    """Compare what an answer names with what it should name.

    Numbers are whole ones: ``12345678``, ``1234567.5`` and ``x1234567`` do not name 1234567, and ``1,234,567`` and full-width
    digits do. Words are compared without case. An empty answer, or one that refuses, names nothing and is worth 0.
    """
    named = names_in(answer, "numbers" if expected[0].isdecimal() else "words")
    first = set(list(dict.fromkeys(named))[: len(expected)])
    found = sum(value in named for value in expected) / len(expected)
    likeness = [max((similarity(value, other) for other in set(named)), default=0.0) for value in expected]
    return Score(float(first == set(expected)), found, sum(likeness) / len(expected))


def names_in(answer: str, values: str) -> list[str]:
    """Every value of that form in an answer, in order."""
    joined = GROUPED.sub(lambda match: match.group().replace(match.group(1), ""), answer)
    text = HYPHENS.sub("-", unicodedata.normalize("NFKC", joined)).casefold()
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    return (NUMBER if values == "numbers" else COMPOUND).findall(text)


def similarity(a: str, b: str) -> float:
    """1 − Levenshtein distance ÷ the longer length; 1 for two empty texts."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return 1 - row[-1] / max(len(a), len(b), 1)


def effective_context(scores: dict[int, float], base: float, threshold: float) -> int | None:
    """The longest length at which, and at all shorter ones, the score is at least ``threshold`` · ``base``; 0 if at none.

    Args:
        scores: Length → mean score. base: The uncompressed model's score at the shortest length.

    Returns:
        Tokens, or ``None`` where ``base`` is 0 and no score could fall below it.

    Source: NoLiMa (Modarressi et al. 2025) sets the bar at 85 % of a model's own score at short lengths, where RULER
    (Hsieh et al. 2024) has a fixed 85.6 %. Both take the longest length that passes; here those below it must pass too,
    so that a lucky long one does not count.
    """
    if base <= 0:
        return None
    longest = 0
    for length in sorted(scores):
        if scores[length] < threshold * base:
            break
        longest = length
    return longest
