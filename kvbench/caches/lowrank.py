"""Fewer dimensions: values as coefficients in a basis, expanded once after the weighted sum."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from kvbench.caches.attend import attend
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.ledger import Part
from kvbench.caches.packing import Scheme
from kvbench.caches.stores import DenseStore, LowRankStore, QuantStore, Store


class ValueLowRankLayer(LayerCache):
    """Dense keys; values ``[T, D]`` as coefficients ``[T, r]``: ``softmax(q Kᵀ) (V W) Wᵀ``.

    Args:
        basis: ``[Hkv, D, r]``, orthonormal columns.
        coefficients: How coefficients are quantised; ``None`` keeps them dense.
    """

    def __init__(self, context: LayerContext, basis: Tensor, coefficients: Scheme | None) -> None:
        super().__init__(context)
        self.keys_store = DenseStore("keys", context.dtype)
        name = "value coefficients"
        inner = DenseStore(name, context.dtype) if coefficients is None else QuantStore(name, coefficients, context.dtype)
        self.values_store = LowRankStore(inner, basis)

    @property
    def length(self) -> int:
        return self.keys_store.length

    def compress(self, prompt: TokenView) -> None:
        self.append(prompt.keys, prompt.values)

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.keys_store.append(keys)
        self.values_store.append(values)

    def attend(self, q: Tensor) -> Tensor:
        keys, coefficients = self.keys_store.read(q.dtype), self.values_store.read(q.dtype)
        weighed = attend(q, keys, coefficients, self.scaling)  # [B, Hq, m, r]
        b, heads, m, _ = weighed.shape
        grouped = weighed.reshape(b, keys.shape[1], heads // keys.shape[1] * m, -1)
        return self.values_store.expand(grouped).reshape(b, heads, m, -1)

    def stores(self) -> Iterator[Store]:
        yield self.keys_store
        yield self.values_store

    def artefacts(self) -> Iterator[Part]:
        yield Part("value basis", self.values_store.basis, self.values_store.basis.nbytes)
