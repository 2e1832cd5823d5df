"""Fewer tokens: a score per token and KV head decides which are kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from kvbench.caches.buffers import TokenBuffer, gather_tokens
from kvbench.caches.dense import DenseLayer
from kvbench.caches.layer import LayerContext, TokenView
from kvbench.caches.ledger import Part
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Observer

DUST = 1e-9
"""Keeps 1000 · (1 − 0.9) from becoming 99: products of decimal fractions fall a hair short."""


def kept_count(tokens: int, ratio: float) -> int:
    """Tokens kept of ``tokens`` when the fraction ``ratio`` is removed, at least one."""
    return max(1, int(tokens * (1.0 - ratio) + DUST))


def ranking(scores: Tensor) -> Tensor:
    """Token indices ``[B, Hkv, T]`` by falling score; ties go to the later token, on every device."""
    newest_first = scores.flip(-1).argsort(dim=-1, descending=True, stable=True)
    return scores.shape[-1] - 1 - newest_first


def best_tokens(scores: Tensor, count: int) -> Tensor:
    """Indices ``[B, Hkv, count]`` of the highest ``scores`` ``[B, Hkv, T]``, in order of position."""
    return ranking(scores)[..., :count].sort(-1).values


class Scorer(Protocol):
    """What an eviction method adds: how much each token is worth keeping."""

    @property
    def needs(self) -> Needs: ...

    def score(self, tokens: TokenView) -> Tensor:
        """``[B, Hkv, T]``, higher is kept."""


class EvictedLayer(DenseLayer):
    """Keeps the best tokens of each KV head.

    ``prefill``: the prompt is cut once to ``kept_count(prompt, ratio)`` tokens and the cache grows after it.
    ``streaming``: after every ``chunk_size`` tokens it is cut to ``kept_count(context, ratio)``.

    Args:
        scorer: The method's rule. ratio: Fraction removed.
    """

    def __init__(self, context: LayerContext, scorer: Scorer, ratio: float) -> None:
        super().__init__(context, scorer.needs)
        self.scorer, self.ratio = scorer, ratio
        streaming = context.protocol == "streaming"
        self.budget = kept_count(context.context or 1, ratio) if streaming else None
        self.positions = TokenBuffer("positions", torch.int32) if streaming else None

    def compress(self, prompt: TokenView) -> None:
        index = best_tokens(self.scorer.score(prompt), kept_count(prompt.seen, self.ratio))
        self.append(gather_tokens(prompt.keys, index), gather_tokens(prompt.values, index))

    def append(self, keys: Tensor, values: Tensor) -> None:
        super().append(keys, values)
        if self.positions is not None:
            n = keys.shape[2]
            fresh = torch.arange(self.seen, self.seen + n, device=keys.device, dtype=torch.int32)
            self.positions.append(fresh[:, None].expand(*keys.shape[:3], 1))

    def stable_for(self) -> int | None:
        if self.budget is None:
            return None
        chunk = self.context.chunk_size
        room = self.budget - self.keys_store.length
        to_boundary = chunk - self.seen % chunk
        return max(to_boundary, to_boundary + (room - to_boundary) // chunk * chunk)

    def settle(self) -> None:
        """Streaming: at a chunk's end, evict down to the budget."""
        if self.budget is None or self.positions is None or self.seen % self.context.chunk_size or self.keys_store.length <= self.budget:
            return
        index = best_tokens(self.scorer.score(self._view()), self.budget)
        self.keys_store.keep(index)
        self.values_store.keep(index)
        self.positions.keep(index)
        if self.observer is not None:
            self.observer.keep(index)

    def _view(self) -> TokenView:
        if self.positions is None:
            raise RuntimeError("positions are followed in streaming only")
        keys, values = self.keys_store.buffer.view(), self.values_store.buffer.view()
        observer = self.observer or _nothing(self)
        return TokenView(keys, values, self.positions.view()[..., 0].long(), self.seen, self.scaling, observer, self.context)

    def observed_keys(self, dtype: torch.dtype) -> Tensor:
        return self.keys_store.read(dtype)

    def parts(self) -> Iterator[Part]:
        yield from super().parts()
        if self.positions is not None:
            yield from self.positions.parts()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        if self.positions is not None:
            self.positions.reorder(beam_idx)


def _nothing(layer: EvictedLayer) -> Observer:
    return Observer(Needs(), layer.scaling)
