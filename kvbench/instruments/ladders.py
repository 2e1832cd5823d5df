"""Settings tried one after the other to see where keys, and where values, break: ranks and bits, each through a method's own store.

A ladder is a registered method of which one parameter is turned. Methods that store keys and values alike serve both sides at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kvbench.errors import KvbenchError
from kvbench.methods.method import Method
from kvbench.methods.registered import resolve
from kvbench.models.shape import Shape
from kvbench.spec import MethodSpec, RunSpec

PARTS = (60, 56, 48, 40, 32, 24, 16, 12, 8, 4, 2, 1)
"""Ranks tried, in 64ths of the head size."""
BITS = (8, 4, 3, 2)


@dataclass(frozen=True)
class Ladder:
    """One parameter turned step by step.

    Attributes:
        name: Short and stable. title: What is done to a token, for tables. sides: ``k``, ``v`` or both, which it stores so.
        method: From a step to the method's label. steps: From the head size to the values tried.
    """

    name: str
    title: str
    sides: str
    method: Callable[[int], str]
    steps: Callable[[int], tuple[int, ...]]


def _ranks(head_dim: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, head_dim * n // 64) for n in PARTS}, reverse=True))


LADDERS = (
    Ladder("rank", "rank", "kv", lambda r: f"orthogonal:rank={r}", _ranks),
    Ladder("rank_before_rope", "rank, before RoPE", "k", lambda r: f"palu:group_heads=1,rank={r}", _ranks),
    Ladder("bits", "bits, per token", "kv", lambda b: f"int4:k_bits={b},v_bits={b}", lambda _: BITS),
    Ladder("bits_per_channel", "bits, per channel", "k", lambda b: f"kivi:k_bits={b},v_bits=16,residual=32", lambda _: BITS),
)
"""Ranks by calibrated PCA; bits in asymmetric groups of 32, of one token's channels or of one channel's tokens."""


@dataclass(frozen=True)
class Rung:
    """One step of a ladder, as a method that fits the model."""

    ladder: Ladder
    step: int
    method: Method


def rungs(spec: RunSpec, shape: Shape) -> Iterator[Rung]:
    """Every step that the model's shape allows."""
    for ladder in LADDERS:
        for step in ladder.steps(shape.head_dim):
            method = resolve(MethodSpec.parse(ladder.method(step)), spec)
            try:
                method.check(shape)
            except (ValueError, KvbenchError):  # codes that do not fill bytes, a group that divides no head
                continue
            yield Rung(ladder, step, method)
