"""A small model of a token's worth, read off its hidden state (KVzap, arXiv 2601.07891, §3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

PREFIX = "surrogate_"
"""Artefacts: ``w1`` ``[Hkv or h, hidden]`` and ``b1``; for two layers ``w2`` ``[Hkv, h]`` and ``b2`` as well."""


def surrogate_scores(hidden: Tensor, artefacts: Mapping[str, Tensor]) -> Tensor:
    """Scores ``[B, Hkv, n]`` (float32 or wider) of hidden states ``[B, n, hidden]``: linear, or two layers with a GELU between.

    Raises:
        ValueError: the layer has no calibrated surrogate.
    """
    if PREFIX + "w1" not in artefacts:
        raise ValueError("this layer has no calibrated surrogate")
    wide = torch.promote_types(hidden.dtype, torch.float32)
    w1, b1, w2, b2 = (None if (t := artefacts.get(PREFIX + name)) is None else t.to(wide) for name in ("w1", "b1", "w2", "b2"))
    out = F.linear(hidden.to(wide), w1, b1)  # type: ignore[arg-type]
    if w2 is not None:
        out = F.linear(F.gelu(out), w2, b2)
    return out.transpose(1, 2)
