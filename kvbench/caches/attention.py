"""The attention function that ``transformers`` calls: it hands each forward to the layer that stores it.

``LayerCache.update`` tags the fresh keys with their layer, and the model passes just those keys on to
attention, so nothing is monkeypatched and nothing is global. Keys without a tag (no cache, or one of
transformers' own) get ordinary attention, causal and padding-aware.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvbench.caches.compat import register
from kvbench.caches.layer import TAG


def kvbench_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """``query`` ``[B, Hq, n, D]``, ``key``/``value`` ``[B, Hkv, n or T, D]`` → ``[B, n, Hq, D]``."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = getattr(key, TAG, None)
    if layer is None:
        out = _plain(query, key, value, attention_mask, scale)
    else:
        out = layer.forward(query, key, value, scale, attention_mask)
    return out.transpose(1, 2).contiguous(), None


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    n, total = q.shape[2], k.shape[2]
    visible: Tensor | None = None
    if mask is not None and mask.ndim == 4:
        visible = mask
    elif n > 1 or mask is not None:
        visible = torch.ones(n, total, dtype=torch.bool, device=q.device).tril(total - n)
        if mask is not None:
            own = torch.eye(n, total, dtype=torch.bool, device=q.device).roll(total - n, 1)  # padding rows see themselves: no NaN
            visible = visible & mask[:, None, None, :total].bool() | own
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


register(kvbench_attention)
