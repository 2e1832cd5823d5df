"""What storage rules come to in bytes, reckoned from sizes alone. Importable without torch.

A plan must say what a method will store before there is a model, and within a second: nothing is stored to find out. Each rule
here counts what a store of :mod:`kvbench.caches.stores` holds; a test holds them equal to the ledgers of all methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from kvbench.caches.needs import Needs

DUST = 1e-9
"""Keeps 1000 · (1 − 0.9) from becoming 99: products of decimal fractions fall a hair short."""
LENGTHS = 16
"""Bytes of a buffer's start and length on the device, two int64."""
INT16, INT32 = 2, 4


def kept_count(tokens: int, ratio: float) -> int:
    """Tokens kept of ``tokens`` when the fraction ``ratio`` is removed, at least one."""
    return max(1, int(tokens * (1.0 - ratio) + DUST))


@dataclass(frozen=True)
class Place:
    """Where a layer stands.

    Attributes:
        index, layers: This layer and how many there are.
        heads, kv_heads, head_dim: Query heads, key-value heads, head size.
    """

    index: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Prompt(Place):
    """A layer that has compressed a prompt of one sequence.

    Attributes:
        tokens: Of the prompt, or those of them that another method kept.
        itemsize: Bytes of a number in the cache.
        wide: Bytes of a running sum: 4, or 8 where the model computes in float64.
    """

    tokens: int
    itemsize: int
    wide: int = 4

    def of(self, tokens: int) -> Self:
        """With ``tokens`` of the prompt."""
        return replace(self, tokens=tokens)

    @property
    def one_head(self) -> Self:
        """One KV head with the query heads that read it."""
        return replace(self, heads=self.heads // self.kv_heads, kv_heads=1)


def rows(heads: int, tokens: int, width: int) -> int:
    """A buffer of rows of ``width`` bytes, whether there are any or not."""
    return heads * tokens * width + LENGTHS


def dense(prompt: Prompt, tokens: int, width: int | None = None) -> int:
    """Keys, or values, of ``tokens`` tokens as they are; ``width`` channels of each head, by default all."""
    return rows(prompt.kv_heads, tokens, (prompt.head_dim if width is None else width) * prompt.itemsize)


def coded(prompt: Prompt, tokens: int, bits: int, group: int, *, symmetric: bool, by_channel: bool = False) -> int:
    """Keys, or values, of ``tokens`` tokens as codes of ``bits`` bits with a scale, and a zero point unless ``symmetric``, a group.

    A group is ``group`` channels of a token, or tokens of a channel.
    """
    return coefficients(prompt, tokens, prompt.kv_heads, prompt.head_dim, bits, group, symmetric=symmetric, by_channel=by_channel)


def coefficients(
    prompt: Prompt, tokens: int, heads: int, width: int, bits: int, group: int, *, symmetric: bool = False, by_channel: bool = False
) -> int:
    """As :func:`coded`, of ``heads`` rows of ``width`` numbers a token; 0 ``bits`` keeps them dense."""
    if not bits:
        return rows(heads, tokens, width * prompt.itemsize)
    scales = (tokens // group, width) if by_channel else (tokens, width // group)
    each = rows(heads, scales[0], scales[1] * prompt.itemsize)
    return rows(heads, tokens, width * bits // 8) + each * (1 if symmetric else 2)


def observed(prompt: Prompt, needs: Needs, kept: int, every: int) -> int:
    """What a held budget goes on with, after an eviction to ``kept`` tokens and ``every`` tokens before the next."""
    found = 0
    if needs.window:
        queries = min(needs.window, prompt.tokens, max(0, needs.window - every))
        found += rows(prompt.heads, queries, prompt.head_dim * prompt.itemsize)
    if needs.attention:
        found += rows(prompt.heads, kept, prompt.wide)
    width = prompt.head_dim
    found += sum(prompt.heads * (2 * width + width * width) * prompt.wide for skip in needs.moments if prompt.tokens > skip)
    return found + sum(rows(prompt.kv_heads, kept, prompt.wide) for _ in needs.surrogate)


def held(prompt: Prompt, needs: Needs, kept: int, every: int | None) -> int:
    """Keys and values of ``kept`` tokens, and where they are cut again ``every`` so many tokens what that takes."""
    stored = 2 * dense(prompt, kept)
    if every is None:
        return stored
    return stored + rows(prompt.kv_heads, kept, INT32) + observed(prompt, needs, kept, every)


def over_heads(bytes_of: Sequence[int]) -> int | None:
    """What heads of different lengths store, where several ways of sharing the tokens out all come to the same; else ``None``."""
    return bytes_of[0] if bytes_of and len(set(bytes_of)) == 1 else None
