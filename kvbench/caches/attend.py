"""Attention of a block of queries over what a layer reads, causal among the block's own tokens.

Grouped queries are folded into rows (``[B, Hkv, G·m, D]``), so keys and values are never repeated.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def causal(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    """A prompt's own attention: ``q`` ``[B, Hq, C, D]``, ``k``/``v`` ``[B, Hkv, C, D]`` → ``[B, Hq, C, Dv]``."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])


def attend(q: Tensor, k: Tensor, v: Tensor, scaling: float, hidden: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Queries ``[B, Hq, m, D]`` over ``k`` ``[B, Hkv, T, D]`` and ``v`` ``[B, Hkv, T, W]`` → ``[B, Hq, m, W]``.

    The last m of the T tokens are the queries' own: query i sees all stored tokens and the fresh ones
    up to itself, whatever their number, but for those where ``hidden`` ``[B, Hkv, T]`` is True.
    ``bias`` ``[B, Hkv or 1, 1, T]`` is added to the logits.
    W may differ from D (low-rank values).
    """
    rows = fold(q, k.shape[1])
    mask = None if q.shape[2] == 1 else _block_mask(q.shape[2], k.shape[2], q.shape[1] // k.shape[1], q.device)
    if hidden is not None:
        seen = ~hidden[:, :, None]  # [B, Hkv, 1, T]
        mask = seen if mask is None else seen & mask
    if bias is not None:
        mask = bias if mask is None else torch.where(mask, bias, float("-inf"))
    return unfold(F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=scaling), q.shape[1])


def fold(q: Tensor, kv_heads: int) -> Tensor:
    """``[B, Hq, m, D]`` → ``[B, Hkv, G·m, D]``: query head h reads KV head h // G."""
    b, heads, m, d = q.shape
    return q.reshape(b, kv_heads, heads // kv_heads * m, d)


def unfold(rows: Tensor, heads: int) -> Tensor:
    """``[B, Hkv, G·m, W]`` → ``[B, Hq, m, W]``."""
    b, kv_heads, gm, w = rows.shape
    return rows.reshape(b, heads, gm * kv_heads // heads, w)


def grouped_scores(q: Tensor, k: Tensor, scaling: float) -> Tensor:
    """Masked logits ``[B, Hq, m, T]`` of a block whose own tokens are the last m keys; float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    logits = unfold(fold(q, k.shape[1]).to(wide) @ k.to(wide).transpose(2, 3) * scaling, q.shape[1])
    if q.shape[2] > 1:
        logits = logits.masked_fill(~_block_mask(q.shape[2], k.shape[2], 1, q.device), float("-inf"))
    return logits


@lru_cache(maxsize=8)
def _block_mask(m: int, total: int, groups: int, device: torch.device) -> Tensor:
    """``[G·m, T]``, True where query row g·m + i may read: tokens up to T − m + i."""
    mask = torch.ones(m, total, dtype=torch.bool, device=device).tril(total - m)
    return mask.repeat(groups, 1)
