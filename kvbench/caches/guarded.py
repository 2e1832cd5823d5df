"""Mixed precision: the most important tokens dense, the others quantised."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvbench.caches.attend import attend
from kvbench.caches.evicted import ranking
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.packing import Scheme
from kvbench.caches.stores import DenseStore, QuantStore, Store


class GuardedLayer(LayerCache):
    """Stores the tokens that an eviction keeps: the best ``guard`` of them dense, the rest as codes, fresh tokens dense.

    Args:
        guard: Fraction that stays dense, by the scores that come with the tokens. keys, values: Token-axis schemes.
    """

    def __init__(self, context: LayerContext, guard: float, keys: Scheme, values: Scheme) -> None:
        super().__init__(context)
        self.guard = guard
        self.guarded = DenseStore("guarded keys", context.dtype), DenseStore("guarded values", context.dtype)
        self.coded = QuantStore("keys", keys, context.dtype), QuantStore("values", values, context.dtype)
        self.fresh = DenseStore("recent keys", context.dtype), DenseStore("recent values", context.dtype)

    @property
    def length(self) -> int:
        return sum(stores[0].length for stores in (self.guarded, self.coded, self.fresh))

    def compress(self, prompt: TokenView) -> None:
        dense, coded = self._split(prompt)
        for stores, index in ((self.guarded, dense), (self.coded, coded)):
            if index.shape[-1]:
                part = prompt.gathered(index)
                stores[0].append(part.keys)
                stores[1].append(part.values)

    def _split(self, prompt: TokenView) -> tuple[Tensor, Tensor]:
        """Indices ``[B, Hkv, m]`` of the tokens that stay dense and of those that become codes, each in order."""
        if prompt.scores is None:
            raise ValueError("guarded tokens are chosen by the scores of an eviction")
        kept = prompt.keys.shape[2]
        dense = min(kept, round(kept * self.guard))
        ranked = ranking(prompt.scores)
        return ranked[..., :dense].sort(-1).values, ranked[..., dense:].sort(-1).values

    def places(self, prompt: TokenView) -> Tensor:
        return prompt.positions.gather(2, torch.cat(self._split(prompt), 2))

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.fresh[0].append(keys)
        self.fresh[1].append(values)

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self._side(0, dtype), self._side(1, dtype)

    def _side(self, side: int, dtype: torch.dtype) -> Tensor:
        held = [stores[side].read(dtype) for stores in (self.guarded, self.coded, self.fresh) if stores[side].length]
        return torch.cat(held, 2)

    def attend(self, q: Tensor) -> Tensor:
        return attend(q, *self.read(q.dtype), self.scaling)

    def stores(self) -> Iterator[Store]:
        for pair in (self.guarded, self.coded, self.fresh):
            yield from pair
