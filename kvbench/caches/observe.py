"""What a method wants to know of the tokens besides their keys and values.

The same observer serves both protocols: over a prompt it looks once at all of it, in
``streaming`` it follows block by block, and what it then holds counts as stored bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvbench.caches.attend import grouped_scores
from kvbench.caches.ledger import Part
from kvbench.caches.needs import Needs
from kvbench.caches.rope import Rope

SLAB = 128  # queries whose attention is held at once


@dataclass
class Moments:
    """Running mean and covariance of the queries before RoPE, positions below ``skip`` left out.

    Shapes: ``total`` ``[B, Hq, D]``, ``outer`` ``[B, Hq, D, D]``. Held about a fixed origin (the first
    block's mean), so that float32 does not cancel.
    """

    skip: int
    count: int = 0
    origin: Tensor | None = None
    total: Tensor | None = None
    outer: Tensor | None = None

    def add(self, q: Tensor) -> None:
        """``q`` ``[B, Hq, n, D]``, unrotated."""
        if q.shape[2] == 0:
            return
        if self.origin is None:
            self.origin = q.mean(2)
        centred = q - self.origin[:, :, None]
        total, outer = centred.sum(2), centred.transpose(2, 3) @ centred
        self.total = total if self.total is None else self.total + total
        self.outer = outer if self.outer is None else self.outer + outer
        self.count += q.shape[2]

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Mean ``[B, Hq, D]`` and biased covariance ``[B, Hq, D, D]``."""
        if self.origin is None or self.total is None or self.outer is None:
            raise ValueError(f"no query after the first {self.skip} tokens was seen")
        shift = self.total / self.count
        return self.origin + shift, self.outer / self.count - shift[..., :, None] * shift[..., None, :]

    def parts(self) -> Iterator[Part]:
        for tensor in (self.origin, self.total, self.outer):
            if tensor is not None:
                yield Part("query moments", tensor, tensor.nbytes)


@dataclass
class Observer:
    """Follows the queries of one layer.

    Attributes:
        needs: What is asked for; nothing else is computed or held.
        window: The last ``needs.window`` queries, ``[B, Hq, w, D]``.
        attention: Attention received by each kept token so far, summed over queries, ``[B, Hq, T]`` float32 or wider.
    """

    needs: Needs
    scaling: float
    rope: Rope | None = None
    window: Tensor | None = None
    attention: Tensor | None = None
    moments: list[Moments] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.moments = [Moments(skip) for skip in self.needs.moments]

    def follow(self, q: Tensor, keys: Tensor, first: int) -> None:
        """See queries ``q`` ``[B, Hq, m, D]`` at positions ``first…`` over ``keys`` ``[B, Hkv, T, D]``, the last m being their own."""
        if self.needs.window:
            held = q if self.window is None else torch.cat((self.window, q), 2)
            self.window = held[:, :, -self.needs.window :].clone()
        if self.needs.attention:
            self._add_attention(q, keys)
        if self.moments:
            if self.rope is None:
                raise ValueError("this model has no rotary embedding to undo")
            flat = self.rope.unrotate(q, first)
            for m in self.moments:
                m.add(flat[:, :, max(0, m.skip - first) :])

    def _add_attention(self, q: Tensor, keys: Tensor) -> None:
        total = keys.shape[2]
        before = 0 if self.attention is None else self.attention.shape[2]
        sums = q.new_zeros(q.shape[0], q.shape[1], total, dtype=torch.promote_types(q.dtype, torch.float32))
        if self.attention is not None:
            sums[:, :, :before] = self.attention
        m = q.shape[2]
        for start in range(0, m, SLAB):
            end = min(m, start + SLAB)
            seen = total - m + end  # keys that the slab's last query sees
            probs = grouped_scores(q[:, :, start:end], keys[:, :, :seen], self.scaling).softmax(-1)
            sums[:, :, :seen] += probs.sum(2)
        self.attention = sums

    def keep(self, index: Tensor) -> None:
        """Follow an eviction: ``index`` ``[B, Hkv, m]``."""
        if self.attention is not None:
            groups = self.attention.shape[1] // index.shape[1]
            self.attention = self.attention.gather(2, index.repeat_interleave(groups, 1))

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        for holder, names in ((self, ("window", "attention")), *((m, ("origin", "total", "outer")) for m in self.moments)):
            for name in names:
                held = getattr(holder, name)
                if held is not None:
                    setattr(holder, name, held.index_select(0, rows.to(held.device)))

    def parts(self) -> Iterator[Part]:
        if self.window is not None:
            yield Part("window queries", self.window, self.window.nbytes)
        if self.attention is not None:
            yield Part("attention sums", self.attention, self.attention.nbytes)
        for m in self.moments:
            yield from m.parts()
