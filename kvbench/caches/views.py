"""The tokens that a method is shown, to be compressed or scored."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbench.caches.checked import checked_index
from kvbench.caches.layer_context import LayerContext
from kvbench.caches.observe import Observer


@dataclass
class TokenView:
    """Tokens of one layer to be compressed or scored, and what was observed of the queries.

    Attributes:
        keys, values: ``[B, Hkv, T, D]``; keys carry RoPE at their own positions.
        positions: Original positions ``[B, Hkv, T]``.
        seen: Tokens seen so far (T unless some were evicted).
        scaling: The model's softmax scale.
        observed: What the method's ``needs`` asked for.
        layer: Where this is.
        budget: Tokens that will be kept of these, where that is known.
        scores: How much each is worth, ``[B, Hkv, T]``, where an eviction has said.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    seen: int
    scaling: float
    observed: Observer
    layer: LayerContext
    budget: int | None = None
    scores: Tensor | None = None

    def at(self, index: Tensor) -> TokenView:
        """The tokens at ``index`` ``[B, Hkv, m]`` alone.

        Raises:
            MethodError: there are no such tokens, or one is named twice.
        """
        return self.gathered(checked_index(index, self.keys.shape[2]))

    def gathered(self, index: Tensor) -> TokenView:
        """As ``at``, of an index that cannot be wrong by the way in which it was made."""
        rows = index[..., None].expand(*index.shape, self.keys.shape[3])
        scores = None if self.scores is None else self.scores.gather(2, index)
        keys, values = self.keys.gather(2, rows), self.values.gather(2, rows)
        return replace(self, keys=keys, values=values, positions=self.positions.gather(2, index), scores=scores)

    @property
    def wide(self) -> torch.dtype:
        """The keys' dtype, at least float32: in which scores are computed."""
        return torch.promote_types(self.keys.dtype, torch.float32)

    def window_attention(self, window: int) -> Tensor:
        """Attention probabilities ``[B, Hq, w, T]`` of the last ``window`` queries over the tokens here."""
        if self.observed.window is None:
            raise ValueError("a method that reads window queries must declare them in needs")
        q = self.observed.window[:, :, -window:].to(self.wide)
        groups = q.shape[1] // self.keys.shape[1]
        grouped = torch.unflatten(q, 1, (-1, groups))  # [B, Hkv, G, w, D]
        logits = grouped @ self.keys.to(self.wide)[:, :, None].transpose(3, 4) * self.scaling
        at = torch.arange(self.seen - q.shape[2], self.seen, device=q.device)
        future = self.positions[:, :, None, None, :] > at[:, None]
        return logits.masked_fill(future, float("-inf")).softmax(-1).flatten(1, 2)

    def over_groups(self, scores: Tensor) -> Tensor:
        """Mean over the query heads of each KV head: ``[B, Hq, T]`` → ``[B, Hkv, T]``."""
        return torch.unflatten(scores, 1, (self.keys.shape[1], -1)).mean(2)


def prompt_view(k: Tensor, v: Tensor, scaling: float, observer: Observer, context: LayerContext) -> TokenView:
    """All tokens of a prompt, at positions 0…"""
    positions = torch.arange(k.shape[2], device=k.device).expand(k.shape[:3])
    return TokenView(k, v, positions, k.shape[2], scaling, observer, context)
