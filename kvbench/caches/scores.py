"""Scores that more than one method uses."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import avg_pool1d

from kvbench.caches.layer import TokenView


def window_votes(tokens: TokenView, window: int, kernel: int) -> Tensor:
    """Attention of the last ``window`` queries, averaged over them and the query group, then over ``kernel`` neighbours.

    SnapKV, arXiv 2404.14469, §4. The window itself scores infinity. Pooling pads with zeros and always
    divides by ``kernel``.

    Returns:
        ``[B, Hkv, T]``.
    """
    received = tokens.over_groups(tokens.window_attention(window).mean(2))
    in_window = tokens.positions >= tokens.seen - window
    older = received.masked_fill(in_window, 0.0)
    pooled = avg_pool1d(older, kernel, stride=1, padding=kernel // 2)
    return pooled.masked_fill(in_window, float("inf"))
