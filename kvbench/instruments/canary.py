"""Changing what a cache stores, to see whether attention notices: all of it, or one token of one head of one layer.

Every number format is changed within itself. Plain floats are mirrored (x → 1 − x); whole numbers, booleans and everything of
one byte (packed codes, fp8) change places, so that an index stays an index of something that is there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.caches.cache import KVCache
from kvbench.instruments.transplant import live_elements

LOUD = 1e4
"""What a probed token is overwritten with: with this sign or the other, any attention to it shows."""


def corrupt(cache: KVCache) -> None:
    """Change everything that the ledger counts."""
    for layer in cache.layers:
        for part in layer.all_parts():
            live, guessed = live_elements(part)
            changed = part.tensor if guessed else live
            if changed.numel():
                _change(changed)


def _change(tensor: Tensor) -> None:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.is_floating_point() and tensor.element_size() > 1:
        tensor.neg_().add_(1.0)
    else:
        numbers = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
        numbers.copy_(numbers.flatten().roll(1).view(numbers.shape))


def shout(cache: KVCache, spot: tuple[int, int, int], length: int, sign: int) -> None:
    """Overwrite what one layer stores of one token for one KV head, (layer, head, token) = ``spot``, by the loudest number.

    Args:
        length: Tokens of the prompt: a tensor of four axes with at least so many along the third, and more than one
            number each, has one row a token.
        sign: 1 or −1.
    """
    layer, head, place = spot
    for part in cache.layers[layer].all_parts():
        tensor = part.tensor
        if tensor.ndim == 4 and tensor.shape[2] >= length and tensor.shape[3] > 1:
            tensor[:, head % tensor.shape[1], place].fill_(_loudest(tensor.dtype, sign))


def _loudest(dtype: torch.dtype, sign: int) -> float:
    if dtype == torch.bool:
        return int(sign > 0)
    if not dtype.is_floating_point:
        return torch.iinfo(dtype).max if sign > 0 else torch.iinfo(dtype).min
    return sign * min(LOUD, torch.finfo(dtype).max)


__all__ = ["corrupt", "shout"]
