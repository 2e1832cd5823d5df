"""Fewer tokens and fewer bits: the most important dense, the next quantised, the rest gone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvbench.caches.attend import attend
from kvbench.caches.buffers import gather_tokens
from kvbench.caches.evicted import Rule, kept_count, ranking
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.packing import Scheme
from kvbench.caches.stores import DenseStore, QuantStore, Store


class MixedLayer(LayerCache):
    """Three stores: guarded tokens dense, other retained tokens quantised, recent tokens dense.

    ``prefill``: the prompt is sorted once into guarded, quantised and dropped; later tokens stay dense.
    ``streaming``: the recent part holds up to ``window`` tokens beyond which whole blocks of ``fold``
    tokens, oldest first, are sorted in the same way and added to the two older stores.

    Args:
        scorer: Importance. retain: Fraction of tokens kept. guard: Fraction of the kept that stays dense.
        keys, values: Token-axis schemes. window, fold: Tokens, streaming only.
    """

    def __init__(
        self, context: LayerContext, scorer: Rule, *, retain: float, guard: float, keys: Scheme, values: Scheme, window: int, fold: int
    ) -> None:
        super().__init__(context, scorer.needs)
        self.scorer, self.retain, self.guard = scorer, retain, guard
        self.window, self.fold = window, fold
        self.guarded = DenseStore("guarded keys", context.dtype), DenseStore("guarded values", context.dtype)
        self.coded = QuantStore("keys", keys, context.dtype), QuantStore("values", values, context.dtype)
        self.recent = DenseStore("recent keys", context.dtype), DenseStore("recent values", context.dtype)

    @property
    def length(self) -> int:
        return sum(stores[0].length for stores in (self.guarded, self.coded, self.recent))

    def compress(self, prompt: TokenView) -> None:
        self._sort_in(prompt.keys, prompt.values, self.scorer.score(prompt))

    def _sort_in(self, keys: Tensor, values: Tensor, scores: Tensor) -> None:
        """Keep the best ``retain`` of these tokens, the best ``guard`` of them dense."""
        kept = kept_count(keys.shape[2], 1.0 - self.retain)
        dense = min(kept, round(kept * self.guard))
        ranked = ranking(scores)
        for stores, index in ((self.guarded, ranked[..., :dense]), (self.coded, ranked[..., dense:kept])):
            if index.shape[-1]:
                at = index.sort(-1).values
                stores[0].append(gather_tokens(keys, at))
                stores[1].append(gather_tokens(values, at))

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.recent[0].append(keys)
        self.recent[1].append(values)

    def stable_for(self) -> int | None:
        if self.context.protocol == "prefill":
            return None
        return self.window + self.fold - self.recent[0].length

    def settle(self) -> None:
        if self.context.protocol == "prefill" or self.recent[0].length < self.window + self.fold:
            return
        keys, values = (s.buffer.view() for s in self.recent)
        if self.observer is None:
            raise RuntimeError("a streaming mixed layer follows its queries")
        first = self.seen - keys.shape[2]
        positions = torch.arange(first, self.seen, device=keys.device).expand(keys.shape[:3])
        view = TokenView(keys, values, positions, self.seen, self.scaling, self.observer, self.context)
        scores = self.scorer.score(view)[..., : self.fold]
        self._sort_in(keys[:, :, : self.fold], values[:, :, : self.fold], scores)
        for store in self.recent:
            store.drop_front(self.fold)

    def attend(self, q: Tensor) -> Tensor:
        keys, values = (self._read(side, q.dtype) for side in (0, 1))
        return attend(q, keys, values, self.scaling)

    def _read(self, side: int, dtype: torch.dtype) -> Tensor:
        held = [stores[side].read(dtype) for stores in (self.guarded, self.coded, self.recent) if stores[side].length]
        return torch.cat(held, 2)

    def stores(self) -> Iterator[Store]:
        for side in (self.guarded, self.coded, self.recent):
            yield from side
