"""Fewer channels: older keys keep only those that the queries make use of (ThinK, arXiv 2407.21018)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from kvbench.caches.attend import fold, grouped_scores, unfold
from kvbench.caches.checked import checked_channels
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.ledger import Part
from kvbench.caches.needs import Needs
from kvbench.caches.stores import DenseStore, Store


class ChannelRule(Protocol):
    """What a method adds: how many channels stay, and how much each is worth."""

    @property
    def needs(self) -> Needs: ...

    def score(self, prompt: TokenView) -> Tensor:
        """``[B, Hkv, D]``, higher is kept."""


def best_channels(scores: Tensor, count: int) -> Tensor:
    """Indices ``[B, Hkv, count]`` of the highest ``scores`` ``[B, Hkv, D]``, ascending; ties go to the lower channel, on every device."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(-1).values


class ThinStore:
    """Keys of which each row and KV head keeps ``W`` of its ``D`` channels.

    Args:
        dtype: Format in which they are kept.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.inner = DenseStore("keys", dtype)
        self.channels: Tensor | None = None  # [B, Hkv, W], int16

    @property
    def length(self) -> int:
        return self.inner.length

    def choose(self, channels: Tensor) -> None:
        """Keep ``channels`` ``[B, Hkv, W]`` of everything that is appended."""
        self.channels = channels.to(torch.int16)

    def append(self, x: Tensor) -> None:
        """Store the chosen channels of ``x`` ``[B, Hkv, n, D]``."""
        self.inner.append(self.thinned(x))

    def thinned(self, x: Tensor) -> Tensor:
        """``x`` ``[B, Hkv, n, D]`` at the chosen channels, ``[B, Hkv, n, W]``."""
        if self.channels is None:
            raise RuntimeError("channels must be chosen before keys are stored")
        index = self.channels.long()[:, :, None].expand(-1, -1, x.shape[2], -1)
        return x.gather(-1, index)

    def read(self, dtype: torch.dtype) -> Tensor:
        """``[B, Hkv, length, W]``: what a query's own ``thinned`` channels are multiplied with."""
        return self.inner.read(dtype)

    def widened(self, dtype: torch.dtype, width: int) -> Tensor:
        """``[B, Hkv, length, D]`` with zeros at the removed channels; ``width`` is D."""
        if self.channels is None:
            raise RuntimeError("no keys were stored")
        thin = self.read(dtype)
        index = self.channels.long()[:, :, None].expand_as(thin)
        return thin.new_zeros(*thin.shape[:3], width).scatter(-1, index, thin)

    def keep(self, index: Tensor) -> None:
        self.inner.keep(index)

    def reorder(self, rows: Tensor) -> None:
        self.inner.reorder(rows)
        if self.channels is not None:
            self.channels = self.channels.index_select(0, rows.to(self.channels.device))

    def parts(self) -> Iterator[Part]:
        yield from self.inner.parts()
        if self.channels is not None:
            yield Part("kept channels", self.channels, self.channels.nbytes)


class ThinLayer(LayerCache):
    """The prompt's keys without their least useful channels; its newest tokens, and all after it, whole; values dense.

    A removed channel is one whose product with the query is left out: the same scores as if it were zero.

    Args:
        rule: Scores channels. kept: Channels that stay. recent: The prompt's newest tokens that stay whole.
    """

    def __init__(self, context: LayerContext, rule: ChannelRule, *, kept: int, recent: int) -> None:
        super().__init__(context, rule.needs)
        self.rule, self.kept, self.recent = rule, kept, recent
        self.old_keys = ThinStore(context.dtype)
        self.new_keys = DenseStore("recent keys", context.dtype)
        self.values_store = DenseStore("values", context.dtype)

    @property
    def length(self) -> int:
        return self.values_store.length

    def compress(self, prompt: TokenView) -> None:
        old = max(0, prompt.keys.shape[2] - self.recent)
        if old:
            self.old_keys.choose(best_channels(checked_channels(self.rule.score(prompt), prompt.keys), self.kept))
            self.old_keys.append(prompt.keys[:, :, :old])
        if old < prompt.keys.shape[2]:
            self.new_keys.append(prompt.keys[:, :, old:])
        self.values_store.append(prompt.values)

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.new_keys.append(keys)
        self.values_store.append(values)

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys with zeros for what was removed, and values, ``[B, Hkv, length, D]``; attention needs no such keys."""
        held = [self.old_keys.widened(dtype, self.context.head_dim)] if self.old_keys.length else []
        held += [self.new_keys.read(dtype)] if self.new_keys.length else []
        return torch.cat(held, 2), self.values_store.read(dtype)

    def attend(self, q: Tensor) -> Tensor:
        values = self.values_store.read(q.dtype)
        logits = grouped_scores(q, self.new_keys.read(q.dtype), self.scaling)  # [B, Hq, m, recent and fresh]
        if self.old_keys.length:
            logits = torch.cat((self._old_scores(q, logits.dtype), logits), -1)
        probs = fold(logits.softmax(-1).to(values.dtype), values.shape[1])
        return unfold(probs @ values, q.shape[1])

    def _old_scores(self, q: Tensor, dtype: torch.dtype) -> Tensor:
        """Logits ``[B, Hq, m, T]`` over the thinned keys; every query sees all of them."""
        thin = self.old_keys.thinned(fold(q, self.context.kv_heads)).to(dtype)
        return unfold(thin @ self.old_keys.read(dtype).transpose(2, 3) * self.scaling, q.shape[1])

    def stores(self) -> Iterator[Store]:
        yield self.old_keys
        yield self.new_keys
        yield self.values_store
