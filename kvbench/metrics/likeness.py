"""How like two texts of tokens are, and how repetitive one is: pure functions of token ids and strings."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

GRAM = 4
"""Tokens of the n-grams whose repetition is counted."""


def first_divergence(own: Sequence[int], reference: Sequence[int]) -> int | None:
    """Index of the first token that differs, the end of the shorter text included; ``None`` if both are the same."""
    shared = next((i for i, (a, b) in enumerate(zip(own, reference, strict=False)) if a != b), min(len(own), len(reference)))
    return None if shared == len(own) == len(reference) else shared


def agreement(own: Sequence[int], reference: Sequence[int]) -> float:
    """Share of positions, of the longer text's, that hold the same token; 1 for two empty texts."""
    longest = max(len(own), len(reference))
    return sum(a == b for a, b in zip(own, reference, strict=False)) / longest if longest else 1.0


def repetition(tokens: Sequence[int], n: int = GRAM) -> float | None:
    """seq-rep-n: 1 − distinct n-grams ÷ n-grams, 0 without any repetition; ``None`` where the text is shorter than one n-gram.

    Source: Welleck et al. (2020), "Neural text generation with unlikelihood training", §6 (repetition metrics).
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else None


def normalised(text: str) -> str:
    """Text for an exact match: compatible characters are one (NFKC), case is folded, white space is one blank, none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def visible(text: str) -> str:
    """Text on one line: a line end is ↵, whatever cannot be printed is its escape."""
    return "".join("↵" if c == "\n" else c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


class Likeness:
    """One method's texts beside the baseline's, over the prompts (``keys``) that both have; most figures are by prompt.

    Args:
        records: prompt (a number) → ``tokens``, ``short_text``. reference: The baseline's.
    """

    def __init__(self, records: Mapping[str, Mapping[str, Any]], reference: Mapping[str, Mapping[str, Any]]) -> None:
        self.records, self.reference = records, reference
        self.keys = sorted((key for key in records if key in reference), key=int)

    def pair(self, key: str) -> tuple[list[int], list[int]]:
        return self.records[key]["tokens"], self.reference[key]["tokens"]

    def divergences(self) -> dict[str, int | None]:
        return {key: first_divergence(*self.pair(key)) for key in self.keys}

    def agreements(self) -> dict[str, float]:
        return {key: agreement(*self.pair(key)) for key in self.keys}

    def prefixes(self) -> dict[str, float]:
        """Share of the longer text that comes before the texts part."""
        return {key: 1.0 if at is None else at / max(map(len, self.pair(key))) for key, at in self.divergences().items()}

    def shifts(self) -> dict[str, float]:
        """Tokens more than the baseline's."""
        return {key: float(len(own) - len(base)) for key, (own, base) in ((key, self.pair(key)) for key in self.keys)}

    def matches(self) -> dict[str, float]:
        """1 where the first tokens are the same normalised text."""
        return {
            key: float(normalised(self.records[key]["short_text"]) == normalised(self.reference[key]["short_text"])) for key in self.keys
        }

    def repetitions(self) -> dict[str, float]:
        """Of all its texts that are long enough, with or without the baseline's."""
        found = {key: repetition(self.records[key]["tokens"]) for key in sorted(self.records, key=int)}
        return {key: value for key, value in found.items() if value is not None}

    def same_after(self, count: int) -> dict[str, float]:
        """1 where the first ``count`` tokens are the baseline's (or all, where both end before)."""
        return {key: float(at is None or at >= count) for key, at in self.divergences().items()}

    def survival(self, counts: Sequence[int]) -> dict[str, float]:
        """count → share of prompts."""
        return {str(k): math.fsum(self.same_after(k).values()) / len(self.keys) for k in counts}

    def median_divergence(self) -> float | None:
        """``None`` where that lies beyond the end: half of the texts or more never diverge."""
        ordered = sorted(math.inf if at is None else at for at in self.divergences().values())
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        return middle if math.isfinite(middle) else None

    def earliest(self) -> int | None:
        return min((at for at in self.divergences().values() if at is not None), default=None)
