"""Several caches under one forward: rows of a batch that belong to different methods, or to different prompts.

A decoder's projections and its MLPs do not know which cache a row attends to, so one forward over the rows of many
methods reads the weights once and multiplies large matrices instead of many small ones. Inside attention each method's
layer takes its own rows, as if they had come alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from kvbench.caches.cache import KVCache
from kvbench.caches.layer import LayerCache, TaggedLayer
from kvbench.caches.needs import Needs


class JointLayer(TaggedLayer):
    """One layer of each cache, with the rows that are its own.

    Args:
        layers: One a cache. rows: How many rows each has.
    """

    def __init__(self, layers: Sequence[LayerCache], rows: Sequence[int]) -> None:
        super().__init__()
        self.is_initialized = True
        ends = [0, *torch.tensor(rows).cumsum(0).tolist()]
        self.members = [(layer, slice(first, end)) for layer, (first, end) in zip(layers, pairwise(ends), strict=True)]
        self.needs: Needs = reduce(Needs.__or__, (layer.needs for layer in layers), Needs())
        self.hidden: Tensor | None = None

    @property
    def seen(self) -> int:  # type: ignore[override]
        """Tokens seen by the longest member; positions are given with each forward."""
        return max(layer.seen for layer, _ in self.members)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scaling: float, padding: Tensor | None = None) -> Tensor:
        """Attention of every member's rows through its own layer; shapes as :meth:`LayerCache.forward`."""
        out = torch.empty_like(q)
        hidden, self.hidden = self.hidden, None
        for layer, rows in self.members:
            if hidden is not None and (layer.needs.hidden or layer.needs.surrogate):
                layer.hidden = hidden[rows]
            out[rows] = layer.forward(q[rows], k[rows], v[rows], scaling)
        return out


class JointCache(KVCache):
    """Caches that go through the model together; what passes is stored in each of them, and nothing here.

    Args:
        caches: Each compressed already. rows: How many rows of the batch each has.
    """

    def __init__(self, caches: Sequence[KVCache], rows: Sequence[int]) -> None:
        layers = [JointLayer(of, rows) for of in zip(*(cache.layers for cache in caches), strict=True)]
        super().__init__(layers, "joint")
        self.members, self.rows = tuple(caches), tuple(rows)

    def positions(self, count: int, device: torch.device) -> Tensor:
        """Positions ``[rows, count]`` of the next ``count`` tokens of every row."""
        starts = [int(cache.get_seq_length()) for cache, rows in zip(self.members, self.rows, strict=True) for _ in range(rows)]
        return torch.tensor(starts, device=device)[:, None] + torch.arange(count, device=device)
