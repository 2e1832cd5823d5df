"""A left-padded batch: each row has a layer of its own, so it gives just what it gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Row(Protocol):
    """The layer of one row."""

    hidden: Tensor | None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scaling: float, padding: Tensor | None = None) -> Tensor:
        """As :meth:`kvbench.caches.layer.LayerCache.forward`."""


def is_padded(padding: Tensor | None) -> bool:
    """Whether a prompt's mask ``[B, n]``, False at left padding, hides anything."""
    return padding is not None and not bool(padding.all())


def skipped(padding: Tensor) -> list[int]:
    """Tokens of each row that are padding."""
    skips: list[int] = (padding.shape[1] - padding.sum(1)).tolist()
    return skips


def row_by_row(
    rows: Sequence[Row], skips: Sequence[int], q: Tensor, k: Tensor, v: Tensor, scaling: float, hidden: Tensor | None
) -> Tensor:  # fmt: skip
    """Attention ``[B, Hq, n, D]`` of each row's own tokens, those behind its first ``skips``, through its own layer; zeros at padding."""
    out = torch.zeros_like(q)
    for row, (layer, skip) in enumerate(zip(rows, skips, strict=True)):
        own = slice(row, row + 1)
        layer.hidden = None if hidden is None else hidden[own, skip:]
        out[own, :, skip:] = layer.forward(q[own, :, skip:], k[own, :, skip:], v[own, :, skip:], scaling)
    return out
