"""Scores that more than one method uses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from kvbench.caches.evicted import ranking
from kvbench.caches.views import TokenView


def certain(scores: Tensor, where: Tensor) -> Tensor:
    """``scores`` with a value that none exceeds, and yet a number, ``where`` a token is kept whatever its own."""
    return scores.masked_fill(where, torch.finfo(scores.dtype).max)


def window_votes(tokens: TokenView, window: int, kernel: int) -> Tensor:
    """Attention of the last ``window`` queries, averaged over them and the query group, then over ``kernel`` neighbours.

    SnapKV, arXiv 2404.14469, §4. The window itself scores highest. Pooling pads with zeros and always
    divides by ``kernel``.

    Returns:
        ``[B, Hkv, T]``.
    """
    received = tokens.over_groups(tokens.window_attention(window).mean(2))
    in_window = tokens.positions >= tokens.seen - window
    older = received.masked_fill(in_window, 0.0)
    pooled = avg_pool1d(older, kernel, stride=1, padding=kernel // 2)
    return certain(pooled, in_window)


def best_over_heads(scores: Tensor, budget: int, safe: int) -> Tensor:
    """The best ``budget · Hkv`` tokens of a layer over its heads, each head's own best ``safe`` among them.

    Args:
        scores: ``[B, Hkv, T]``. budget: Tokens a head on average. safe: Least tokens a head.

    Returns:
        Mask ``[B, Hkv, T]``.
    """
    own = torch.zeros_like(scores, dtype=torch.bool).scatter(2, ranking(scores)[..., :safe], True)
    wide = scores if scores.is_floating_point() else scores.double()
    below = wide.clamp(max=torch.finfo(wide.dtype).max)  # one head's window does not outrank what another head is sure of
    above = below.masked_fill(own, float("inf")).flatten(1)
    best = ranking(above[:, None])[:, 0, : budget * scores.shape[1]]
    return torch.zeros_like(above, dtype=torch.bool).scatter(1, best, True).view_as(own)
