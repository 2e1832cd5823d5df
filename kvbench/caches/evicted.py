"""Fewer tokens: a score per token and KV head decides which are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from kvbench.caches.buffers import BLOCK, TokenBuffer, gather_tokens
from kvbench.caches.checked import SPOILT, Watch, checked_count, checked_index, checked_scores
from kvbench.caches.dense import DenseLayer
from kvbench.caches.layer_context import LayerContext
from kvbench.caches.ledger import Part
from kvbench.caches.marks import differ, marks
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Observer
from kvbench.caches.reckon import Place
from kvbench.caches.views import TokenView


def ranking(scores: Tensor) -> Tensor:
    """Token indices ``[B, Hkv, T]`` by falling score; ties go to the later token, on every device."""
    newest_first = scores.flip(-1).argsort(dim=-1, descending=True, stable=True)
    return scores.shape[-1] - 1 - newest_first


def best_tokens(scores: Tensor, count: int) -> Tensor:
    """Indices ``[B, Hkv, count]`` of the highest ``scores`` ``[B, Hkv, T]``, in order of position."""
    return ranking(scores)[..., :count].sort(-1).values


class Rule(Protocol):
    """What an eviction method adds: how many tokens stay, and how much each is worth keeping."""

    @property
    def needs(self) -> Needs: ...

    @property
    def in_order(self) -> bool:
        """Whether the score reads the order in which tokens are held; otherwise only their positions."""

    @property
    def evict_every(self) -> int | None:
        """Tokens between two evictions while decoding; ``None`` lets the cache grow after the prompt."""

    def kept(self, tokens: int, layer: Place) -> int:
        """How many of ``tokens`` are kept in each KV head of ``layer``."""

    def score(self, tokens: TokenView) -> Tensor:
        """``[B, Hkv, T]``, higher is kept."""


def scored(rule: Rule, tokens: TokenView, budget: int, watch: Watch | None = None) -> Tensor:
    """What ``rule`` makes of ``tokens``, of which ``budget`` stay, ``[B, Hkv, T]``.

    Args:
        watch: Where the numbers are looked at later, and now and then whether scoring changed the tokens; ``None`` looks at the
            scores now, and a shared prompt is looked after by who lends it.

    Raises:
        MethodError: no score for each token, or none that ranks.
    """
    before = marks([tokens]) if watch is not None and watch.is_due() else None
    scores = checked_scores(rule.score(replace(tokens, budget=budget)), tokens.keys, watch, ranks=budget < tokens.keys.shape[2])
    if watch is not None and before is not None:
        watch.see(differ(before, marks([tokens])), SPOILT)
    return scores


class EvictedLayer(DenseLayer):
    """Keeps the best tokens of each KV head.

    ``prefill``: the prompt is cut once to ``rule.kept(prompt)`` tokens; the cache then grows, or is cut down to
    the same number again after every ``rule.evict_every`` tokens: for that, positions are held, and of what the score reads
    of the queries just what it will read then. ``streaming``: after every ``chunk_size``
    tokens it is cut to ``rule.kept(context)``.

    Args:
        rule: The method's.
    """

    def __init__(self, context: LayerContext, rule: Rule) -> None:
        super().__init__(context, rule.needs)
        self.rule, self.origin = rule, 0
        streaming = context.protocol == "streaming"
        self.every = context.chunk_size if streaming else rule.evict_every
        total = context.context or 1
        self.budget = checked_count(rule.kept(total, context), total) if streaming else None
        self.positions = TokenBuffer("positions", torch.int32) if self.every else None

    def compress(self, prompt: TokenView) -> None:
        self.take(prompt, self.choose(prompt))

    def choose(self, prompt: TokenView) -> Tensor:
        """Indices ``[B, Hkv, m]`` of the tokens to keep, in order."""
        tokens = prompt.keys.shape[2]
        budget = checked_count(self.rule.kept(tokens, self.context), tokens)
        return best_tokens(scored(self.rule, prompt, budget), budget)

    def places(self, prompt: TokenView) -> Tensor:
        return prompt.positions.gather(2, self.choose(prompt))

    def take(self, prompt: TokenView, index: Tensor) -> None:
        """Keep the prompt's tokens at ``index`` ``[B, Hkv, m]``, and that many while decoding.

        Raises:
            MethodError: there are no such tokens, or one is named twice.
        """
        checked_index(index, prompt.keys.shape[2])
        kept = [gather_tokens(rows, index) for rows in (prompt.keys, prompt.values, prompt.positions[..., None])]
        buffers = [self.keys_store.buffer, self.values_store.buffer, self.positions]
        for rows, buffer in zip(kept, buffers, strict=True):
            if buffer is not None:
                buffer.reserve(rows.shape[2] + min(self.every or 0, BLOCK), like=rows)  # what is held at most is known
                buffer.append(rows)
        if self.every is None:
            return
        self.budget, self.origin = index.shape[-1], prompt.seen
        if self.needs.any:
            self.observer = prompt.observed.fork(self.needs, dtype=self.context.dtype)
            self.observer.keep(index)
            self.observer.forget(self.every)

    def append(self, keys: Tensor, values: Tensor) -> None:
        super().append(keys, values)
        if self.positions is not None:
            n = keys.shape[2]
            fresh = torch.arange(self.seen, self.seen + n, device=keys.device, dtype=torch.int32)
            self.positions.append(fresh[:, None].expand(*keys.shape[:3], 1))

    def stable_for(self) -> int | None:
        if self.every is None or self.budget is None:
            return None
        room = self.budget - self.keys_store.length
        to_boundary = self.every - (self.seen - self.origin) % self.every
        return max(to_boundary, to_boundary + (room - to_boundary) // self.every * self.every)

    def settle(self) -> None:
        """At a boundary, evict down to the budget; then keep of the window's queries what the next scoring will read."""
        if self.every is None or self.budget is None or self.positions is None:
            return
        past = (self.seen - self.origin) % self.every
        if not past and self.keys_store.length > self.budget:
            self._evict(self.budget)
        if self.observer is not None:
            self.observer.forget(self.every - past)

    def _evict(self, budget: int) -> None:
        ranked = ranking(scored(self.rule, self._view(), budget, self.watch))
        held = [h for h in (self.keys_store, self.values_store, self.positions, self.observer) if h is not None]
        for holder in held:
            if ranked.shape[-1] == budget + 1 and not self.rule.in_order:
                holder.replace_by_newest(ranked[..., -1:])
            else:
                holder.keep(ranked[..., :budget].sort(-1).values)

    def _view(self) -> TokenView:
        if self.positions is None:
            raise RuntimeError("positions are followed only where tokens are evicted while decoding")
        keys, values = self.keys_store.buffer.view(), self.values_store.buffer.view()
        observer, positions = self.observer or _nothing(self), self.positions.view()[..., 0].long()
        return TokenView(keys, values, positions, self.seen, self.scaling, observer, self.context, self.budget)

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
