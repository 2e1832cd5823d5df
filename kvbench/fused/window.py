"""The newest tokens of a method that quantises behind a dense residual (KIVI, arXiv 2402.02750, Algorithm 1).

With R tokens of residual and n tokens seen, a query reads values dense from token n − R on, and keys dense from the last
multiple of R on; keys between the two are read as their codes say, while their values are still dense. So the window
holds R tokens, in a ring of 2R slots: a step writes its token, and codes the values of the one that leaves; a flush, due
when n is a multiple of R, codes the R newest keys.

Nothing that is read is overwritten before it has left, so a step or a flush that is done again leaves what one leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.caches.packing import dequantise, quantise
from kvbench.fused.storage import Held, Region, put_codes, put_steps, put_token, scheme_of, side


@dataclass
class Window:
    """The newest tokens of every pair, beside the region that holds the others as codes.

    Attributes:
        size: R, tokens. held: ``[pairs]`` int32, tokens of a pair when it was made, those of the region included; all alike.
        keys: ``[2, pairs, 2R, D]``: as their codes say, and dense. values: ``[pairs, 2R, DV]``.
        coded: The region of older tokens.
    """

    size: int
    held: Tensor
    keys: Tensor
    values: Tensor
    coded: Region

    @property
    def start(self) -> int:
        """Tokens of a pair when it was made."""
        return self.coded.longest

    def read_bytes(self, appended: int) -> int:
        """Bytes that a query reads."""
        tokens = min(self.size, self.start + appended) * len(self.held)
        return tokens * (self.keys.shape[-1] + self.values.shape[-1]) * self.keys.element_size()


def window_of(keys: Held, values: Held, size: int, coded: Region) -> Window:
    """A window beside a region that is made.

    Args:
        keys: Dense keys ``[B, H, m, D]`` from the last multiple of ``size`` on; there may be none.
        values: Dense values ``[B, H, m, DV]``, the newest ``size`` or all.
    """
    pairs, total = len(coded.held), coded.longest
    rows = keys.numbers.new_zeros(2, pairs, 2 * size, keys.numbers.shape[3])
    ring = values.numbers.new_zeros(pairs, 2 * size, values.numbers.shape[3])
    _put(rows[1], keys.numbers, total)
    _put(ring, values.numbers, total)
    window = Window(size, coded.held, rows, ring, coded)
    flushed = total - total % size
    if flushed > max(0, total - size):
        newest = range(max(0, total - size), flushed)
        rows[0][:, [t % (2 * size) for t in newest]] = coded_keys(coded, newest, rows.dtype)
    return window


def _put(ring: Tensor, numbers: Tensor, total: int) -> None:
    """The newest tokens, the last of which is number ``total − 1``, in their slots."""
    count = numbers.shape[2]
    slots = [t % ring.shape[1] for t in range(total - count, total)]
    ring[:, slots] = numbers.flatten(0, 1)


def coded_keys(region: Region, tokens: range, dtype: torch.dtype) -> Tensor:
    """Keys ``[pairs, len(tokens), D]`` as their codes say; tokens that are held as codes."""
    rows = [side(region, region.keys, int(first), tokens.stop, dtype, is_value=False)[tokens.start :] for first in region.first]
    return torch.stack(rows)


# The plain form ------------------------------------------------------------------------------


def append(window: Window, keys: Tensor, values: Tensor, appended: int) -> None:
    """Store one token of every pair, ``[B, Hkv, D]`` and ``[B, Hkv, DV]``, and code the values of the one that leaves."""
    token = window.start + appended
    ring = 2 * window.size
    leaver = token - window.size
    if leaver >= 0:
        region = window.coded
        for pair, row in enumerate(window.values[:, leaver % ring]):
            put_token(region, region.values, row, int(region.first[pair]) + leaver, is_value=True)
    window.keys[1][:, token % ring] = keys.flatten(0, 1).to(window.keys.dtype)
    window.values[:, token % ring] = values.flatten(0, 1).to(window.values.dtype)


def read(window: Window, pair: int, appended: int) -> tuple[Tensor, Tensor]:
    """Keys ``[m, D]`` and values ``[m, DV]`` of one pair."""
    total = window.start + appended
    flushed = (total - 1) // window.size * window.size
    tokens = range(max(0, total - window.size), total)
    slots = [t % (2 * window.size) for t in tokens]
    dense = [int(t >= flushed) for t in tokens]
    return window.keys[dense, pair, slots], window.values[pair, slots]


def flush(window: Window, appended: int) -> None:
    """Code the newest R keys."""
    total, region = window.start + appended, window.coded
    tokens = range(total - window.size, total)
    slots = [t % (2 * window.size) for t in tokens]
    scheme = scheme_of(region.keys)
    codes, scales, zeros = quantise(window.keys[1][:, slots][None], scheme, region.dtype)
    for pair, first in enumerate(region.first.tolist()):
        at = slice(first + tokens.start, first + tokens.stop)
        put_codes(region.keys, codes[0, pair], at.start, is_value=False)
        put_steps(region.keys, at, scales[0, pair], None if zeros is None else zeros[0, pair])
    window.keys[0][:, slots] = dequantise(codes, scales, zeros, scheme, window.keys.dtype)[0]
