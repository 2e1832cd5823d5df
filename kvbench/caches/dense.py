"""The model's own cache, and the base of everything that keeps whole tokens in a plain format."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvbench.caches.attend import attend
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.needs import Needs
from kvbench.caches.stores import DenseStore, Store


class DenseLayer(LayerCache):
    """Every token, dense."""

    def __init__(self, context: LayerContext, needs: Needs = Needs()) -> None:  # noqa: B008 (frozen)
        super().__init__(context, needs)
        self.keys_store = DenseStore("keys", context.dtype)
        self.values_store = DenseStore("values", context.dtype)

    @property
    def length(self) -> int:
        return self.keys_store.length

    @property
    def goes_on(self) -> bool:
        return type(self) is DenseLayer

    def compress(self, prompt: TokenView) -> None:
        self.append(prompt.keys, prompt.values)

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.keys_store.append(keys)
        self.values_store.append(values)

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.keys_store.read(dtype), self.values_store.read(dtype)

    def attend(self, q: Tensor) -> Tensor:
        return attend(q, *self.read(q.dtype), self.scaling)

    def stores(self) -> Iterator[Store]:
        yield self.keys_store
        yield self.values_store
