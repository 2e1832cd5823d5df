"""A mark of what a cache reads after it has compressed: equal where two methods kept the same tokens in the same format.

Keys carry their positions, so that a token's keys and values in one layer and head are its own. Every number's bits are mixed
into one whole number a token, those are added up over the tokens, so that their order says nothing, and mixed again over heads
and layers. All of it stays on the device: nothing is waited for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.caches.cache import KVCache
from kvbench.caches.layer import LayerCache
from kvbench.caches.ragged import RaggedLayer

_ODD = -7046029254386353131  # 2^64 divided by the golden ratio, as a signed number
_MIX = -4658895280553007687  # multiplier of SplitMix64
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.inference_mode()
def mark(cache: KVCache, rows: int) -> Tensor | None:
    """``[B]`` int64, a mark of each row of the batch; ``None`` where the method's tokens cannot be read apart."""
    try:
        marks = [_layer(layer, rows) for layer in cache.layers]
    except Exception:  # a mark is a remark: no row fails for want of it
        return None
    first = marks[0].device
    return _folded(torch.stack([of.to(first, non_blocking=True) for of in marks], -1))


def written(found: Tensor) -> list[str]:
    """A mark of each row as 16 hexadecimal digits; waits for the device."""
    return [f"{value % 2**64:016x}" for value in found.tolist()]


def _layer(layer: LayerCache, rows: int) -> Tensor:
    """``[B]``."""
    if isinstance(layer, RaggedLayer):
        heads = torch.cat([_tokens(held).flatten() for _, held in layer.fill(rows)])  # of one head each, rows outermost
        return _folded(heads.reshape(rows, -1))
    return _folded(_tokens(layer))


def _tokens(layer: LayerCache) -> Tensor:
    """``[B, Hkv]``: the tokens' marks, added up."""
    sides = [_folded(x.contiguous().view(_BITS[x.element_size()]).long()) for x in layer.read(layer.context.dtype)]  # [B, Hkv, T]
    return _folded(torch.stack(sides, -1)).sum(-1)


def _folded(x: Tensor) -> Tensor:
    """The last axis of ``[..., n]`` as one number, in which every place has a weight of its own; exact in any order of adding."""
    weights = torch.arange(1, 2 * x.shape[-1], 2, device=x.device) * _ODD
    total = (x * weights).sum(-1)
    total = (total ^ (total >> 29)) * _MIX
    return total ^ (total >> 32)
