"""A small model of a token's worth, read off its hidden state (KVzap, arXiv 2601.07891, §3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

PARTS = ("w1", "b1", "w2", "b2")
"""Artefacts ``NAME/w1`` ``[Hkv or h, hidden]``, ``NAME/b1``; of a second layer ``NAME/w2`` ``[Hkv, h]``, ``NAME/b2``, or empty."""


def part_names(surrogate: str) -> tuple[str, ...]:
    """Names of a surrogate's artefacts."""
    return tuple(f"{surrogate}/{part}" for part in PARTS)


def surrogate_scores(hidden: Tensor, artefacts: Mapping[str, Tensor], surrogate: str) -> Tensor:
    """Scores ``[B, Hkv, n]`` (float32 or wider) of hidden states ``[B, n, hidden]``: linear, or two layers with an exact GELU between.

    Raises:
        ValueError: the layer has no such surrogate.
    """
    held = [artefacts.get(name) for name in part_names(surrogate)]
    if held[0] is None:
        raise ValueError(f"this layer has no calibrated '{surrogate}'")
    wide = torch.promote_types(hidden.dtype, torch.float32)
    w1, b1, w2, b2 = (None if t is None or not t.numel() else t.to(wide) for t in held)
    out = F.linear(hidden.to(wide), w1, b1)  # type: ignore[arg-type]
    if w2 is not None:
        out = F.linear(F.gelu(out), w2, b2)
    return out.transpose(1, 2)
