"""Fewer tokens, stored in another way: one rule says which are kept, another layer how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from kvbench.caches.attend import attend
from kvbench.caches.checked import checked_count
from kvbench.caches.evicted import Rule, best_tokens, scored
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.ledger import Part
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Observer
from kvbench.caches.stores import DenseStore, Store


class ComposedLayer(LayerCache):
    """An eviction over another layer's storage.

    ``prefill``: the prompt's best tokens are handed to ``inner``, and every later token too.
    ``streaming``: the newest tokens are dense, up to ``window`` + ``fold`` of them; then the oldest ``fold`` are
    scored, and the best of them handed to ``inner``; what is observed of the queries is among the dense tokens.

    Args:
        rule: Which tokens are kept. inner: How. window, fold: Tokens, streaming only.
    """

    def __init__(self, context: LayerContext, rule: Rule, inner: LayerCache, *, window: int = 64, fold: int = 128) -> None:
        super().__init__(context, rule.needs)
        self.rule, self.inner = rule, inner
        self.window, self.fold = window, fold
        self.streams = context.protocol == "streaming"
        self.recent = DenseStore("recent keys", context.dtype), DenseStore("recent values", context.dtype)

    def inner_layers(self) -> Iterator[LayerCache]:
        yield from super().inner_layers()
        yield self.inner

    @property
    def length(self) -> int:
        return self.inner.length + self.recent[0].length

    def compress(self, prompt: TokenView) -> None:
        self._hand_over(prompt, prompt.keys.shape[2])

    def _hand_over(self, tokens: TokenView, among: int) -> None:
        """Give ``inner`` the best of the first ``among`` tokens, as many as the rule keeps."""
        self.inner.scaling = self.scaling
        self.inner.compress(self._best(tokens, among))

    def _best(self, tokens: TokenView, among: int) -> TokenView:
        """The best of the first ``among`` tokens, as many as the rule keeps, with their scores."""
        budget = checked_count(self.rule.kept(among, self.context), among)
        scores = scored(self.rule, tokens, budget, self.watch if self.streams else None)
        return replace(tokens, scores=scores).gathered(best_tokens(scores[..., :among], budget))

    def places(self, prompt: TokenView) -> Tensor:
        return self.inner.places(self._best(prompt, prompt.keys.shape[2]))

    def block(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.streams:
            return super().block(q, k, v)
        self.inner.scaling, self.inner.seen = self.scaling, self.seen
        out = self.inner.block(q, k, v)
        self.seen = self.inner.seen
        return out

    def stable_for(self) -> int | None:
        return self.window + self.fold - self.recent[0].length if self.streams else self.inner.stable_for()

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.recent[0].append(keys)
        self.recent[1].append(values)

    def settle(self) -> None:
        """Streaming: fold the oldest of the dense tokens into ``inner`` once there are enough."""
        if self.recent[0].length < self.window + self.fold:
            return
        keys, values = (store.buffer.view() for store in self.recent)
        observer = self.observer or Observer(Needs(), self.scaling)
        positions = torch.arange(self.seen - keys.shape[2], self.seen, device=keys.device).expand(keys.shape[:3])
        tokens = TokenView(keys, values, positions, self.seen, self.scaling, observer, self.context)
        self._hand_over(tokens, self.fold)
        for store in self.recent:
            store.drop_front(self.fold)
        if self.observer is not None:
            self.observer.keep(torch.arange(self.fold, keys.shape[2], device=keys.device).expand(*keys.shape[:2], -1))

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if self.recent[0].length == 0:
            return self.inner.read(dtype)
        keys, values = (store.read(dtype) for store in self.recent)
        if self.inner.length == 0:
            return keys, values
        old_keys, old_values = self.inner.read(dtype)
        return torch.cat((old_keys, keys), 2), torch.cat((old_values, values), 2)

    def attend(self, q: Tensor) -> Tensor:
        return attend(q, *self.read(q.dtype), self.scaling)

    def observed_keys(self, dtype: torch.dtype) -> Tensor:
        return self.recent[0].read(dtype)

    def parts(self) -> Iterator[Part]:
        yield from self.inner.all_parts()
        yield from super().parts()

    def artefacts(self) -> Iterator[Part]:
        return self.inner.artefacts()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.inner.reorder_cache(beam_idx)

    def stores(self) -> Iterator[Store]:
        yield from self.recent
