"""Fewer dimensions: tokens as coefficients in a calibrated basis.

Values are weighed as coefficients and expanded once after the weighted sum, ``softmax(·) (V W) Wᵀ``; where the
basis is folded into the model's projections (:mod:`kvbench.caches.folding`), they come and go as coefficients.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from kvbench.caches.attend import attend
from kvbench.caches.basis import CoefficientStore, Projection, expand, project_queries
from kvbench.caches.fold import Fold
from kvbench.caches.heads import projection_bias
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.ledger import Part
from kvbench.caches.packing import Scheme
from kvbench.caches.rope import Rope
from kvbench.caches.stores import DenseStore, Store


class LowRankLayer(LayerCache):
    """Values as coefficients; how keys are stored is up to the subclass.

    Args:
        values: The values' basis.

    Attributes:
        fold: The basis folded into the module's projections, once tokens passed through those.
        folded: Whether values come as coefficients now, and the weighed sums are to go as such.
    """

    has_bias_apart = False
    """Whether the projection's bias is left out of the coefficients and added to the sums (attention's weights sum to one)."""

    def __init__(self, context: LayerContext, values: Projection) -> None:
        super().__init__(context)
        self.values_store = CoefficientStore("value", values, context.kv_heads, context.dtype)
        self.fold: Fold | None = None
        self.folded = False

    @property
    def rank(self) -> int:
        """Columns of the values' basis, of one head or one group of heads."""
        return self.values_store.projection.rank

    @abstractmethod
    def append_keys(self, keys: Tensor) -> None:
        """Store fresh keys ``[B, Hkv, n, D]``."""

    @abstractmethod
    def score_with(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys whose products are the scores, ``[B, Hq, m, W]`` and ``[B, Hkv, T, W]``."""

    @abstractmethod
    def read_keys(self, dtype: torch.dtype) -> Tensor:
        """Keys ``[B, Hkv, T, D]``, rebuilt where they must be."""

    @property
    def length(self) -> int:
        return self.values_store.length

    def compress(self, prompt: TokenView) -> None:
        self.append(prompt.keys, prompt.values)

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.append_keys(keys)
        if self.folded and self.fold is not None:
            self.values_store.append_coefficients(self.fold.coefficients(values))
        else:
            bias = self.value_bias()
            self.values_store.append(values if bias is None else values - bias[:, None].to(values.dtype))

    def attend(self, q: Tensor) -> Tensor:
        weighed = attend(*self.score_with(q), self.values_store.read(q.dtype), self.scaling)  # [B, Hq, m, r]
        if self.folded:
            return weighed
        return self._with_bias(expand(weighed, self.values_store.projection.per_head(self.context.kv_heads)))

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.read_keys(dtype), self._with_bias(self.values_store.rebuilt(dtype))

    def _with_bias(self, sums: Tensor) -> Tensor:
        bias = self.value_bias()
        if bias is None:
            return sums
        return sums + bias.repeat_interleave(sums.shape[1] // bias.shape[0], 0)[:, None].to(sums.dtype)

    def value_bias(self) -> Tensor | None:
        """``[Hkv, D]``, of the model's own ``v_proj``, where it is kept apart."""
        return projection_bias(self.context.module, "v_proj", self.context.head_dim) if self.has_bias_apart else None

    def artefacts(self) -> Iterator[Part]:
        yield self.values_store.part()
        if self.fold is not None:
            yield from self.fold.parts()


class ValueLowRankLayer(LowRankLayer):
    """Dense keys; values ``[T, D]`` as coefficients ``[T, r]``.

    Args:
        basis: ``[Hkv, D, r]``, orthonormal columns, or such a basis with its name.
        coefficients: How coefficients are quantised; ``None`` keeps them dense.
    """

    def __init__(self, context: LayerContext, basis: Tensor | Projection, coefficients: Scheme | None = None) -> None:
        super().__init__(context, basis if isinstance(basis, Projection) else Projection(basis, coefficients))
        self.keys_store = DenseStore("keys", context.dtype)

    def append_keys(self, keys: Tensor) -> None:
        self.keys_store.append(keys)

    def score_with(self, q: Tensor) -> tuple[Tensor, Tensor]:
        return q, self.read_keys(q.dtype)

    def read_keys(self, dtype: torch.dtype) -> Tensor:
        return self.keys_store.read(dtype)

    def stores(self) -> Iterator[Store]:
        yield self.keys_store
        yield self.values_store.store


class OrthogonalLayer(LowRankLayer):
    """Keys and values as coefficients; queries are projected on the keys' basis, so that no key is rebuilt.

    Args:
        keys: Basis of keys as they are cached, RoPE applied. values: Basis of values.
    """

    def __init__(self, context: LayerContext, keys: Projection, values: Projection) -> None:
        super().__init__(context, values)
        self.keys_store = CoefficientStore("key", keys, context.kv_heads, context.dtype)

    def append_keys(self, keys: Tensor) -> None:
        self.keys_store.append(keys)

    def score_with(self, q: Tensor) -> tuple[Tensor, Tensor]:
        per_head = self.keys_store.projection.per_head(self.context.kv_heads)
        return project_queries(q, per_head), self.keys_store.read(q.dtype)

    def read_keys(self, dtype: torch.dtype) -> Tensor:
        return self.keys_store.rebuilt(dtype)

    def stores(self) -> Iterator[Store]:
        yield self.keys_store.store
        yield self.values_store.store

    def artefacts(self) -> Iterator[Part]:
        yield self.keys_store.part()
        yield from super().artefacts()


class PaluLayer(OrthogonalLayer):
    """Keys before RoPE and values as coefficients of head groups; keys are rebuilt and rotated as they are read.

    Palu, arXiv 2407.21118, §3.1, §3.2 and §3.4: ``k̂ = RoPE(c B + b)`` at the token's own position, and the values' basis
    left to the output projection. A projection's bias b is no part of what is decomposed. Tokens are held from the
    first on, so that a token's position is its place.
    """

    has_bias_apart = True

    def compress(self, prompt: TokenView) -> None:
        if prompt.keys.shape[2] != prompt.seen - self.length:
            raise ValueError("palu turns a key by its place and so stores every token; it cannot store what an eviction leaves")
        super().compress(prompt)

    def append_keys(self, keys: Tensor) -> None:
        flat, bias = self._rope.unrotate(keys, self.keys_store.length), self._key_bias()
        self.keys_store.append(flat if bias is None else flat - bias[:, None].to(flat.dtype))

    def score_with(self, q: Tensor) -> tuple[Tensor, Tensor]:
        return q, self.read_keys(q.dtype)

    def read_keys(self, dtype: torch.dtype) -> Tensor:
        flat, bias = self.keys_store.rebuilt(dtype), self._key_bias()
        return self._rope.rotate(flat if bias is None else flat + bias[:, None].to(flat.dtype), 0).to(dtype)

    def _key_bias(self) -> Tensor | None:
        return projection_bias(self.context.module, "k_proj", self.context.head_dim)

    @property
    def _rope(self) -> Rope:
        if self.context.rope is None:
            raise ValueError("this model has no rotary embedding to undo")
        return self.context.rope
