"""Eviction without thought: the control that every eviction must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.methods.method import Eviction

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import TokenView


@dataclass(frozen=True)
class Random(Eviction):
    """Keeps tokens at random, another set in each layer and KV head.

    The draw is a hash of (seed, layer, head, position), so that a token's fate depends neither on the
    batch it is in nor on the device nor on how many tokens come at once.
    """

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "Random eviction"
    family: ClassVar[str] = "reference"
    paper: ClassVar[str] = "control"

    def score(self, tokens: TokenView) -> Tensor:
        import torch

        heads = torch.arange(tokens.keys.shape[1], device=tokens.keys.device)[:, None]
        stream = (tokens.layer.seed * 1_000_003 + tokens.layer.index) * 1_009 + heads
        return _hash(_hash(stream) + tokens.positions)


def _hash(x: Tensor) -> Tensor:
    """A 32-bit finaliser (xor-shift and multiply, as in MurmurHash3), on int64 so that every device agrees."""
    mask = 0xFFFFFFFF
    x = x & mask
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & mask
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & mask
    return x ^ (x >> 16)
