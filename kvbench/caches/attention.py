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

from kvbench.caches.compat import prompt_in_pieces, register
from kvbench.caches.tagged import named_layer
from kvbench.errors import UnsupportedModel, UsageError


def kvbench_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    position_ids: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """``query`` ``[B, Hq, n, D]``, ``key``/``value`` ``[B, Hkv, n or T, D]`` → ``[B, n, Hq, D]``.

    Raises:
        UnsupportedModel: a sliding layer has seen more tokens than it may read, and the cache is kvbench's.
        UsageError: a prompt came in pieces, and one was turned to positions that are not its own.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = named_layer(key)
    if layer is not None:
        _within(sliding_window, layer.seen + query.shape[2])
        out = layer.forward(query, key, value, scale, attention_mask)
        if position_ids is not None and _is_piece(layer, query.shape[2]):
            _in_place(int(position_ids[0, -1]), layer.seen)
    else:
        out = _plain(query, key, value, attention_mask, scale, sliding_window)
    return out.transpose(1, 2).contiguous(), None


def _within(window: int | None, tokens: int) -> None:
    if window is not None and tokens > window:
        text = f"its sliding layers see {window:,} tokens, and {tokens:,} have been read"
        raise UnsupportedModel(f"this model cannot go on with a compressed cache: {text}", hint="use a shorter prompt or fewer new tokens")


def _is_piece(layer: Any, tokens: int) -> bool:
    """Whether the ``tokens`` just read are a piece of a prompt, also of a layer that stores each piece as it comes."""
    return layer.open is not None or (1 < tokens < layer.seen and prompt_in_pieces() is not None)


def _in_place(last: int, seen: int) -> None:
    """transformers 5.2 gives every piece of a prompt the positions of the last one, with any cache."""
    if last != seen - 1:
        text = f"this transformers turns token {seen - 1:,} of a prompt in pieces to position {last:,}"
        raise UsageError(text, hint="leave prefill_chunk_size out, or update transformers")


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, window: int | None) -> Tensor:
    """What the model's own attention gives: mask ``[B, tokens seen]`` of padding, ``[B, 1, n, T]`` as it is, or ``None``."""
    if mask is not None and mask.ndim == 2:
        k, v = k[:, :, : mask.shape[1]], v[:, :, : mask.shape[1]]  # a static cache has room beyond the tokens seen
        mask = mask[:, -k.shape[2] :]  # a sliding cache has let go of the first tokens
    n, total = q.shape[2], k.shape[2]
    whole = mask is None and n == total and (window is None or total <= window)
    visible = None if whole else mask if mask is not None and mask.ndim == 4 else _visible(n, total, mask, window, q.device)
    is_causal, grouped = whole and n > 1, q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=is_causal, scale=scale, enable_gqa=grouped)


def _visible(n: int, total: int, mask: Tensor | None, window: int | None, device: torch.device) -> Tensor | None:
    """``[n, T]`` or ``[B, 1, n, T]``, True where the last n tokens may read; ``None`` where they may read all."""
    if n == 1 and mask is None and (window is None or total <= window):
        return None
    visible = torch.ones(n, total, dtype=torch.bool, device=device).tril(total - n)
    if window is not None:
        visible = visible.triu(total - n - window + 1)
    if mask is not None:
        own = torch.eye(n, total, dtype=torch.bool, device=device).roll(total - n, 1)  # padding rows see themselves: no NaN
        visible = visible & mask[:, None, None].bool() | own
    return visible


register(kvbench_attention)
