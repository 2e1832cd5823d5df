"""Neighbouring KV heads taken together, and a projection's bias by head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def by_group(x: Tensor, heads: int) -> Tensor:
    """``[B, G·g, T, D]`` → ``[B, G, T, g·D]``: the g = ``heads`` neighbours of a group side by side."""
    return x if heads == 1 else torch.unflatten(x, 1, (-1, heads)).transpose(2, 3).flatten(3)


def by_head(x: Tensor, heads: int) -> Tensor:
    """The inverse: ``[B, G, T, g·D]`` → ``[B, G·g, T, D]``."""
    return x if heads == 1 else torch.unflatten(x, 3, (heads, -1)).transpose(2, 3).flatten(1, 2)


def projection_bias(module: nn.Module | None, name: str, head_dim: int) -> Tensor | None:
    """The bias ``[H, D]`` of an attention module's ``k_proj`` or ``v_proj``.

    ``None`` where there is none, or where a norm follows the projection (``k_norm``), so that no part of the
    output is the bias alone.
    """
    projection = getattr(module, name, None)
    bias = getattr(projection, "bias", None)
    if not isinstance(bias, Tensor) or hasattr(module, name.replace("proj", "norm")):
        return None
    return bias.detach().view(-1, head_dim)
