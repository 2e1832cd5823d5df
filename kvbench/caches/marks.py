"""What a prompt that many methods share was, in a few sums: whether one of them changed it shows by comparing.

A tensor's bytes are added up as whole numbers, along its last axis and along the one before: whatever is zeroed, scaled,
sorted or moved about among tokens or channels changes one of the two. It takes one pass over the numbers, no copy of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kvbench.caches.views import TokenView

WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
"""Whole numbers by their bytes."""
SHIFT = 8
"""The highest bits' sums wrap round to nothing where an even number of them changed, as all signs of a row do: seen lower, they do not."""


def marks(views: Sequence[TokenView]) -> list[Tensor]:
    """Sums over all that ``views`` hold, to be compared by :func:`same`."""
    return [total for view in views for tensor in _held(view) for total in _sums(tensor)]


def same(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether both are marks of the same numbers; a device is waited for once."""
    if [(a.shape, a.device) for a in before] != [(b.shape, b.device) for b in after]:
        return False
    devices = {a.device for a in before}
    return not any(bool(differ(*([x for x in held if x.device == d] for held in (before, after)))) for d in devices)


def differ(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """A boolean of no dimension, on the device of both, which have the same shapes: whether they are marks of other numbers."""
    return torch.stack([(a != b).any() for a, b in zip(before, after, strict=True)]).any()


def _held(view: TokenView) -> Iterator[Tensor]:
    """All tensors of a view that a method may read."""
    yield from (view.keys, view.values, view.positions)
    yield from (part.tensor for part in view.observed.parts())
    if view.observed.hidden is not None:
        yield view.observed.hidden


def _sums(tensor: Tensor) -> Iterator[Tensor]:
    if tensor.numel() == 0:
        return
    words = _words(tensor)
    yield words.sum(-1, dtype=torch.int64)
    if words.ndim > 1:
        low = words >> SHIFT if words.dtype == torch.int64 else words
        yield low.sum(-2, dtype=torch.int64)


def _words(tensor: Tensor) -> Tensor:
    """The numbers' bytes as the widest whole numbers that fill the last axis; sums of them wrap round, which is as good."""
    tensor = tensor.contiguous()
    if tensor.ndim == 0:
        tensor = tensor[None]
    row = tensor.shape[-1] * tensor.element_size()
    return tensor.view(
        next(WORDS[size] for size in (8, 4, 2, 1) if row % size == 0 and tensor.storage_offset() * tensor.element_size() % size == 0)
    )
