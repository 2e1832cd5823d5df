"""Whether the codes that the fused path stored are those of the plain path's own numbers, rounding apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.caches.packing import quantise
from kvbench.instruments.dictated_codes import DictatedStore

MARGIN = 8
"""How many times the plain path's rounding a number may lie beyond a boundary: that was seen on one pair of walks, and has a long tail."""
PRODUCT = 64
"""Roundings of float32 (float64) that a sum of a thousand terms may gather: so much is taken for rounding before it is measured."""


@dataclass(frozen=True)
class Stored:
    """What the fused path stored while decoding, beside what the plain path would have stored of the same tokens.

    Attributes:
        codes: Codes compared, of tokens that came after the prompt's were coded, over all layers.
        flipped: Those that differ, where earlier ones are as the fused path stored them. levels: By how many levels at most.
        shifted: Scales and zero points that differ.
        beyond: How far, in levels, the plain path's numbers would have to move at most to give what the fused path stored.
        rounding: How far they move between one forward and another walk of the same tokens, in levels; at least :data:`PRODUCT`.
        drifted: Codes that differ in the plain path's own cache at the end: what followed from the first is among them.
        prompt: Codes, scales and zero points of the prompt that differ. Both paths were given the same: any is an error.
    """

    codes: int
    flipped: int = 0
    levels: int = 0
    shifted: int = 0
    beyond: float = 0.0
    rounding: float = 0.0
    drifted: int = 0
    prompt: int = 0

    @property
    def holds(self) -> bool:
        """Whether rounding explains every difference."""
        return self.prompt == 0 and self.beyond <= MARGIN * self.rounding

    def __str__(self) -> str:
        text = f"{self.flipped} of {self.codes:,} codes differ"
        if self.flipped:
            text += f", by {self.levels} level{'' if self.levels == 1 else 's'}"
        if self.beyond:
            text += f", {self.beyond:.1e} levels beyond the boundary (rounding: {self.rounding:.1e})"
        if self.drifted:
            text += f"; {self.drifted:,} in all that followed"
        return text + (f"; {self.prompt} of the prompt's own" if self.prompt else "")


def compared(stores: Sequence[DictatedStore]) -> Stored:
    """What came to ``stores`` beside what they were told."""
    found = [_compared(store, x) for store in stores if (x := store.came()) is not None]
    if not found:
        return Stored(0)
    codes, flipped, levels, shifted, beyond, least = (torch.stack(column) for column in zip(*found, strict=True))
    counts = [int(t.sum()) for t in (codes, flipped, shifted)]
    return Stored(counts[0], counts[1], int(levels.max()), counts[2], float(beyond.max()), float(least.max()))


def _compared(store: DictatedStore, x: Tensor) -> tuple[Tensor, ...]:
    """Codes, those that differ, levels, scales and zero points that differ, levels beyond, least rounding: each a scalar on the CPU."""
    scheme, own, told = store.scheme, quantise(x, store.scheme, store.scale_dtype), store.told(store.held, x.shape[2], x.shape[:2])
    apart = (own[0].int() - told[0].int()).abs()
    shifted = (own[1] != told[1]).sum()
    scale = _step(told[1])
    ulp, zero = torch.finfo(store.scale_dtype).eps, torch.zeros_like(scale)
    moved = []
    if own[2] is not None and told[2] is not None:
        shifted = shifted + (own[2] != told[2]).sum()
        zero = told[2].double()
        moved.append((own[2].double() - zero).abs() / scale - ulp * zero.abs() / scale)
    # A scale is the range, which has two ends, over the levels; a zero point that is rounded the other way moves it too.
    over = (own[1].double() - told[1].double()).abs() - ulp * (scale + zero.abs() / scheme.levels)
    moved.append(over * scheme.levels / scale / 2)
    place = (x.double() - _spread(zero, store)) / _spread(scale, store) + (scheme.centre if scheme.symmetric else 0)
    moved.append((place.clamp(0, scheme.levels) - told[0]).abs() - 0.5)
    beyond = torch.stack([t.max() for t in moved]).max().clamp(min=0)
    least = PRODUCT * scheme.levels * torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
    found = torch.tensor(apart.numel()), (apart > 0).sum(), apart.max(), shifted, beyond, torch.tensor(least)
    return tuple(t.cpu() for t in found)


def rounding(stores: Sequence[DictatedStore], others: Sequence[DictatedStore]) -> float:
    """How far numbers differ at most, in levels, between two walks of the same tokens with the same codes."""
    found = [0.0]
    for one, other in zip(stores, others, strict=True):
        a, b = one.came(), other.came()
        if a is not None and b is not None:
            scale = _spread(_step(one.told(one.held, a.shape[2], a.shape[:2])[1]), one)
            found.append(float(((a.double() - b.double()).abs() / scale).max()))
    return max(found)


def _step(scales: Tensor) -> Tensor:
    """Scales as numbers to divide by: a constant group has 0."""
    return torch.where(scales == 0, 1, scales).double()


def _spread(steps: Tensor, store: DictatedStore) -> Tensor:
    """One for each number, of one for each group."""
    return steps.repeat_interleave(store.scheme.group, 3 if store.scheme.axis == "token" else 2)
