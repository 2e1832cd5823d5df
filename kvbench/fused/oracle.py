"""What the kernels compute, in plain PyTorch: slow, of any precision, and what they are held against.

Also how the fused path runs on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.fused import window
from kvbench.fused.storage import Region, put_token, side
from kvbench.fused.window import Window


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``x`` ``[B, H, D]`` by ``cos``, ``sin`` ``[1 or B, R]``, R ≤ D, rounded as Hugging Face's models do."""
    size = cos.shape[-1]
    head, rest = x[..., :size], x[..., size:]
    half = torch.cat((-head[..., size // 2 :], head[..., : size // 2]), -1)
    return torch.cat((head * cos[:, None] + half * sin[:, None], rest), -1)


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of each head ``[B, H, D]``, rounded as Hugging Face's models do."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def append(region: Region, keys: Tensor, values: Tensor, appended: int) -> None:
    """Store one token of every pair, ``[B, Hkv, D]`` and ``[B, Hkv, DV]``, behind ``appended`` earlier ones."""
    for plane, rows, is_value in ((region.keys, keys, False), (region.values, values, True)):
        for pair, row in enumerate(rows.flatten(0, 1)):
            slot = int(region.first[pair]) + int(region.held[pair]) + appended
            put_token(region, plane, row, slot, is_value=is_value)


def read(region: Region, pair: int, appended: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys ``[n, D]`` and values ``[n, DV]`` of one pair."""
    start = int(region.first[pair])
    n = max(0, int(region.held[pair]) + (appended if region.grows else 0) - region.lag)
    keys = side(region, region.keys, start, n, dtype, is_value=False)
    return keys, side(region, region.values, start, n, dtype, is_value=True)


def attend(regions: Sequence[Region], q: Tensor, appended: int, scaling: float, newest: Window | None = None) -> Tensor:
    """Queries ``[B, Hq, D]`` over all tokens of all regions → ``[B, Hq, DV]``; softmax in float32 or wider."""
    pairs = len(regions[0].held)
    wide = torch.promote_types(q.dtype, torch.float32)
    rows = torch.unflatten(q.flatten(0, 1), 0, (pairs, -1))  # [pairs, G, D]
    outs = []
    for pair in range(pairs):
        held = [read(region, pair, appended, q.dtype) for region in regions]
        if newest is not None:
            held.append(window.read(newest, pair, appended))
        keys, values = (torch.cat(side).to(wide) for side in zip(*held, strict=True))
        outs.append((rows[pair].to(wide) @ keys.T * scaling).softmax(-1) @ values)
    return torch.stack(outs).to(q.dtype).view(*q.shape[:2], -1)
