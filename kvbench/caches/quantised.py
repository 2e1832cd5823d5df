"""Fewer bits: packed codes, with the newest tokens dense for as long as the method keeps them so."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvbench.caches.attend import attend, fold, grouped_scores, unfold
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.packing import Scheme
from kvbench.caches.stores import DenseStore, QuantStore, Store


class Side:
    """Keys or values: older tokens as codes, the newest dense.

    Args:
        name: ``keys`` or ``values``. scheme: How older tokens are quantised; ``None`` keeps all dense.
        residual: Newest tokens that may be dense; 0 quantises a token as it comes.
        sliding: A token is quantised once ``residual`` newer ones exist, instead of ``residual`` tokens at a time.
        dtype: Format of dense tokens, scales and zero points.
    """

    def __init__(self, name: str, scheme: Scheme | None, residual: int, dtype: torch.dtype, *, sliding: bool = False) -> None:
        self.residual, self.sliding = residual, sliding
        self.old = None if scheme is None else QuantStore(name, scheme, dtype)
        dense = scheme is None or residual > 0
        self.new = DenseStore(name if scheme is None else f"residual {name}", dtype) if dense else None

    @property
    def length(self) -> int:
        return sum(store.length for store in self.stores())

    def take(self, x: Tensor) -> None:
        """Store tokens ``[B, Hkv, n, D]`` that no query of the same block reads: straight as codes, no room taken for them dense."""
        if self.new is None or self.old is None or self.new.length:
            self.append(x)
            self.settle()
            return
        old = self._due(x.shape[2])
        if old:
            self.old.append(x[:, :, :old])
        self.new.append(x[:, :, old:])

    def append(self, x: Tensor) -> None:
        store = self.old if self.new is None else self.new
        if store is not None:
            store.append(x)

    def settle(self) -> None:
        """Quantise what is due."""
        if self.new is None or self.old is None:
            return
        due = self._due(self.new.length)
        if due:
            self.old.append(self.new.buffer.view()[:, :, :due])
            self.new.drop_front(due)

    def _due(self, dense: int) -> int:
        """Of ``dense`` tokens, those that are to be codes."""
        return max(0, dense - self.residual) if self.sliding else dense - dense % self.residual

    def room(self) -> int | None:
        """Tokens that may come before more codes are made; ``None`` is for ever."""
        if self.new is None or self.old is None:
            return None
        return self.residual if self.sliding else self.residual - self.new.length

    @property
    def leaving(self) -> int:
        """Tokens that slide out of the dense window within the block at hand."""
        if not self.sliding or self.new is None or self.old is None:
            return 0
        return max(0, self.new.length - self.residual)

    def read(self, dtype: torch.dtype) -> Tensor:
        """``[B, Hkv, length, D]``: older tokens as they read, then the newest."""
        held = [store.read(dtype) for store in self.stores() if store.length]
        return held[0] if len(held) == 1 else torch.cat(held, 2)

    def stores(self) -> Iterator[DenseStore | QuantStore]:
        yield from (store for store in (self.old, self.new) if store is not None)


class QuantisedLayer(LayerCache):
    """Keys and values quantised apart, each per token or per channel, at once or behind a dense residual.

    With keys per channel flushed ``residual`` at a time and values per token sliding out one by one this is
    KIVI (arXiv 2402.02750, Algorithm 1). A side without a residual is read quantised by its token's own query.
    Within a block the codes stay as they are, while the values that a query reads dense are a band; the
    block form reads the band's leavers through a correction term.
    """

    def __init__(self, context: LayerContext, keys: Side, values: Side) -> None:
        super().__init__(context)
        if keys.sliding:
            raise ValueError("keys slide out of no window one by one: the block form corrects values only")
        self.keys_side, self.values_side = keys, values

    @property
    def length(self) -> int:
        return self.keys_side.length

    def compress(self, prompt: TokenView) -> None:
        self.keys_side.take(prompt.keys)
        self.values_side.take(prompt.values)

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.keys_side.append(keys)
        self.values_side.append(values)

    def stable_for(self) -> int | None:
        rooms = [room for side in (self.keys_side, self.values_side) if (room := side.room()) is not None]
        return min(rooms, default=None)

    def settle(self) -> None:
        self.keys_side.settle()
        self.values_side.settle()

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.keys_side.read(dtype), self.values_side.read(dtype)

    def attend(self, q: Tensor) -> Tensor:
        keys, values = self.read(q.dtype)
        if self.values_side.leaving:
            return self._attend_band(q, keys, values)
        return attend(q, keys, values, self.scaling)

    def _attend_band(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As ``attend``, where query i of m reads the first ``leaving − m + 1 + i`` residual values quantised."""
        old, new, leaving = self.values_side.old, self.values_side.new, self.values_side.leaving
        if old is None or new is None:
            raise RuntimeError("only a quantised side with a residual has leavers")
        m, stored = q.shape[2], old.length
        probs = fold(grouped_scores(q, keys, self.scaling).softmax(-1).to(values.dtype), keys.shape[1])
        dense = new.buffer.view()[:, :, :leaving]
        change = old.rounded(dense).to(q.dtype) - dense.to(q.dtype)  # [B, Hkv, leaving, D]
        has_left = torch.ones(m, leaving, dtype=torch.bool, device=q.device).tril(leaving - m)
        band = probs[..., stored : stored + leaving] * has_left.repeat(q.shape[1] // keys.shape[1], 1)
        return unfold(probs @ values + band @ change, q.shape[1])

    def stores(self) -> Iterator[Store]:
        yield from self.keys_side.stores()
        yield from self.values_side.stores()
