"""Fewer bits: packed codes, with the newest tokens dense for as long as the method keeps them so."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvbench.caches.attend import attend, fold, grouped_scores, unfold
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.packing import Scheme
from kvbench.caches.stores import DenseStore, QuantStore, Store


class QuantisedLayer(LayerCache):
    """Each token is quantised alone, as it comes: keys and values per token, in groups of channels.

    A token's own query reads it quantised too: what is stored is all there is.
    """

    def __init__(self, context: LayerContext, keys: Scheme, values: Scheme) -> None:
        super().__init__(context)
        self.keys_store = QuantStore("keys", keys, context.dtype)
        self.values_store = QuantStore("values", values, context.dtype)

    @property
    def length(self) -> int:
        return self.keys_store.length

    def compress(self, prompt: TokenView) -> None:
        self.append(prompt.keys, prompt.values)

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.keys_store.append(keys)
        self.values_store.append(values)

    def attend(self, q: Tensor) -> Tensor:
        return attend(q, self.keys_store.read(q.dtype), self.values_store.read(q.dtype), self.scaling)

    def stores(self) -> Iterator[Store]:
        yield self.keys_store
        yield self.values_store


class KiviLayer(LayerCache):
    """Keys per channel in groups of tokens, values per token, the newest ``residual`` tokens dense.

    KIVI, arXiv 2402.02750, Algorithm 1. Keys: the residual fills up to ``residual`` tokens, is then
    quantised whole and emptied. Values: each token is quantised when it becomes older than ``residual``.
    So within a block of fresh tokens the stored keys stay as they are, while the values a query reads
    dense are a band; the block form reads the band's leavers through a correction term.

    Args:
        keys: Channel-axis scheme; its group divides ``residual``. values: Token-axis scheme.
        residual: Tokens.
    """

    def __init__(self, context: LayerContext, keys: Scheme, values: Scheme, residual: int) -> None:
        super().__init__(context)
        self.residual = residual
        self.keys_store = QuantStore("keys", keys, context.dtype)
        self.values_store = QuantStore("values", values, context.dtype)
        self.new_keys = DenseStore("residual keys", context.dtype)
        self.new_values = DenseStore("residual values", context.dtype)

    @property
    def length(self) -> int:
        return self.keys_store.length + self.new_keys.length

    def compress(self, prompt: TokenView) -> None:
        """Quantise straight from the prompt, so that no room is ever taken for it dense."""
        old_keys = prompt.seen - prompt.seen % self.residual
        old_values = max(0, prompt.seen - self.residual)
        if old_keys:
            self.keys_store.append(prompt.keys[:, :, :old_keys])
        if old_values:
            self.values_store.append(prompt.values[:, :, :old_values])
        self.new_keys.append(prompt.keys[:, :, old_keys:])
        self.new_values.append(prompt.values[:, :, old_values:])

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.new_keys.append(keys)
        self.new_values.append(values)

    def stable_for(self) -> int | None:
        return self.residual - self.new_keys.length

    def settle(self) -> None:
        if self.new_keys.length >= self.residual:
            self.keys_store.append(self.new_keys.buffer.view())
            self.new_keys.drop_front(self.new_keys.length)
        self._flush_values()

    def _flush_values(self) -> None:
        leaving = self.new_values.length - self.residual
        if leaving > 0:
            self.values_store.append(self.new_values.buffer.view()[:, :, :leaving])
            self.new_values.drop_front(leaving)

    def attend(self, q: Tensor) -> Tensor:
        keys = _joined(self.keys_store, self.new_keys, q.dtype)
        values = _joined(self.values_store, self.new_values, q.dtype)
        leaving = self.new_values.length - self.residual
        if leaving <= 0:
            return attend(q, keys, values, self.scaling)
        return self._attend_band(q, keys, values, leaving)

    def _attend_band(self, q: Tensor, keys: Tensor, values: Tensor, leaving: int) -> Tensor:
        """As ``attend``, where query i of m reads the first ``leaving − m + 1 + i`` residual values quantised."""
        m, stored = q.shape[2], self.values_store.length
        probs = fold(grouped_scores(q, keys, self.scaling).softmax(-1).to(values.dtype), keys.shape[1])
        dense = self.new_values.buffer.view()[:, :, :leaving]
        change = self.values_store.rounded(dense).to(q.dtype) - dense.to(q.dtype)  # [B, Hkv, leaving, D]
        has_left = torch.ones(m, leaving, dtype=torch.bool, device=q.device).tril(leaving - m)
        band = probs[..., stored : stored + leaving] * has_left.repeat(q.shape[1] // keys.shape[1], 1)
        return unfold(probs @ values + band @ change, q.shape[1])

    def stores(self) -> Iterator[Store]:
        yield self.keys_store
        yield self.new_keys
        yield self.values_store
        yield self.new_values


def _joined(old: QuantStore, new: DenseStore, dtype: torch.dtype) -> Tensor:
    """Older tokens as they read, then the newest."""
    if old.length == 0:
        return new.read(dtype)
    if new.length == 0:
        return old.read(dtype)
    return torch.cat((old.read(dtype), new.read(dtype)), 2)
