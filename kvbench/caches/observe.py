"""What a method wants to know of the tokens besides their keys and values.

The same observer serves both protocols: over a prompt it looks once at all of it, in
``streaming`` it follows block by block, and what it then holds counts as stored bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from kvbench.caches.attend import grouped_scores
from kvbench.caches.buffers import TokenBuffer
from kvbench.caches.ledger import Part
from kvbench.caches.needs import Needs
from kvbench.caches.rope import Rope
from kvbench.caches.surrogate import surrogate_scores

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
    blank: Tensor | None = None
    """``[B, Hq, 0, D]`` of a prompt that was left out whole: what its moments would look like. It holds no bytes."""

    def add(self, q: Tensor) -> None:
        """``q`` ``[B, Hq, n, D]``, unrotated; n may be 0."""
        if q.shape[2] == 0:
            self.blank = q.new_empty(q.shape)
            return
        if self.origin is None:
            self.origin = q.mean(2)
        centred = q - self.origin[:, :, None]
        total, outer = centred.sum(2), centred.transpose(2, 3) @ centred
        self.total = total if self.total is None else self.total + total
        self.outer = outer if self.outer is None else self.outer + outer
        self.count += q.shape[2]

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Mean ``[B, Hq, D]`` and biased covariance ``[B, Hq, D, D]``; zeros of a prompt that is no longer than ``skip``.

        Raises:
            ValueError: no prompt has come.
        """
        if self.origin is None or self.total is None or self.outer is None:
            if self.blank is None:
                raise ValueError("query moments are read before a prompt has come")
            return self.blank.sum(2), self.blank.transpose(2, 3) @ self.blank  # sums of nothing
        shift = self.total / self.count
        return self.origin + shift, self.outer / self.count - shift[..., :, None] * shift[..., None, :]

    def part(self, rows: slice, heads: slice) -> Moments:
        """The sums of some rows and query heads, to be added to apart; no tensor is ever changed in place."""
        held = (self.origin, self.total, self.outer, self.blank)
        origin, total, outer, blank = (None if t is None else t[rows, heads].clone() for t in held)
        return replace(self, origin=origin, total=total, outer=outer, blank=blank)

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        for name in ("origin", "total", "outer", "blank"):
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, held.index_select(0, rows.to(held.device)))

    def parts(self) -> Iterator[Part]:
        for tensor in (self.origin, self.total, self.outer):
            if tensor is not None:
                yield Part("query moments", tensor, tensor.nbytes)


@dataclass(frozen=True)
class Cell:
    """One row of a batch and one KV head with the query heads that read it, each a slice of one or more."""

    rows: slice
    keys: slice
    queries: slice

    @classmethod
    def of(cls, row: int, head: int, groups: int) -> Cell:
        return cls(slice(row, row + 1), slice(head, head + 1), slice(head * groups, (head + 1) * groups))


class Observer:
    """Follows the queries of one layer, and its hidden states where a method reads those.

    Args:
        needs: What is asked for; nothing else is computed or held.
        scaling: The model's softmax scale. rope: Its rotary embedding, for ``needs.moments``.
        artefacts: The layer's calibrated tensors, for ``needs.surrogate``.
        dtype: Format in which window queries are held: a cache that stores them stores them as it does keys; ``None`` is their own.
    """

    def __init__(
        self, needs: Needs, scaling: float, rope: Rope | None = None, artefacts: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.needs, self.scaling, self.rope, self.artefacts, self.dtype = needs, scaling, rope, artefacts or {}, dtype
        self.moments = [Moments(skip) for skip in needs.moments]
        self._window: TokenBuffer | None = None
        self._sums: TokenBuffer | None = None
        self._scores: dict[str, TokenBuffer] = {}
        self.hidden: Tensor | None = None
        """The last forward's hidden states ``[B, n, hidden]``: a prompt's, where the method reads them."""

    @property
    def window(self) -> Tensor | None:
        """The last ``needs.window`` queries, ``[B, Hq, w, D]``."""
        return None if self._window is None else self._window.view()

    @property
    def attention(self) -> Tensor | None:
        """Attention received by each kept token so far, summed over queries, ``[B, Hq, T]``, float32 or wider."""
        return None if self._sums is None else self._sums.view()[..., 0]

    def surrogate(self, name: str) -> Tensor:
        """What the surrogate ``name`` makes of the kept tokens' hidden states, ``[B, Hkv, T]``, float32 or wider."""
        return self._scores[name].view()[..., 0]

    def follow(self, q: Tensor, keys: Tensor, first: int, hidden: Tensor | None = None) -> None:
        """See queries ``q`` ``[B, Hq, m, D]`` at positions ``first…`` over ``keys`` ``[B, Hkv, T, D]``, the last m being their own.

        ``hidden`` ``[B, m, hidden]`` is what the attention module was given for the same tokens.
        """
        if self.needs.window:
            self._keep_window(q)
        if self.needs.attention:
            self._add_attention(q, keys)
        if self.moments:
            if self.rope is None:
                raise ValueError("this model has no rotary embedding to undo")
            flat = self.rope.unrotate(q, first)
            for m in self.moments:
                m.add(flat[:, :, max(0, m.skip - first) :])
        if self.needs.hidden:
            self.hidden = hidden
        if self.needs.surrogate:
            self._add_scores(hidden)

    def _add_scores(self, hidden: Tensor | None) -> None:
        if hidden is None:
            raise ValueError("this method reads hidden states, and the model's attention module was not called with any")
        for name in self.needs.surrogate:
            scores = surrogate_scores(hidden, self.artefacts, name)
            self._scores.setdefault(name, TokenBuffer("surrogate scores", scores.dtype)).append(scores[..., None])

    def fork(self, needs: Needs, cell: Cell | None = None, dtype: torch.dtype | None = None) -> Self:
        """An observer of its own that goes on from here with what ``needs`` asks for; this one may be shared.

        ``cell`` takes one row of the batch and one KV head, with its query heads; ``dtype`` as at the start, else this one's.
        """
        rows, queries, keys = (slice(None),) * 3 if cell is None else (cell.rows, cell.queries, cell.keys)
        mine = type(self)(needs, self.scaling, self.rope, self.artefacts, dtype or self.dtype)
        mine.moments = [m.part(rows, queries) for m in self.moments if m.skip in needs.moments]
        if needs.window and self._window is not None:
            mine._keep_window(self._window.view()[rows, queries])
        if needs.attention and self._sums is not None:
            mine._sums = _part(self._sums, rows, queries)
        mine._scores = {name: _part(self._scores[name], rows, keys) for name in needs.surrogate if name in self._scores}
        return mine

    def _keep_window(self, q: Tensor) -> None:
        if self._window is None:
            self._window = TokenBuffer("window queries", self.dtype or q.dtype)
        newest = q[:, :, -self.needs.window :]
        leaving = self._window.length + newest.shape[2] - self.needs.window
        if leaving > 0:
            self._window.drop_front(leaving)
        self._window.append(newest)

    def forget(self, coming: int) -> None:
        """Let go of window queries that ``coming`` newer ones will have pushed out before any is read."""
        if self._window is not None:
            self._window.drop_front(max(0, self._window.length - max(0, self.needs.window - coming)))

    def _add_attention(self, q: Tensor, keys: Tensor) -> None:
        """Add the block's attention, a slab of queries at a time; its own tokens start at zero."""
        wide = torch.promote_types(q.dtype, torch.float32)
        if self._sums is None:
            self._sums = TokenBuffer("attention sums", wide)
        m, total = q.shape[2], keys.shape[2]
        self._sums.append(q.new_zeros(*q.shape[:2], total - self._sums.length, 1, dtype=wide))
        sums = self._sums.view()[..., 0]
        for start in range(0, m, SLAB):
            end = min(m, start + SLAB)
            seen = total - m + end  # keys that the slab's last query sees
            sums[:, :, :seen] += grouped_scores(q[:, :, start:end], keys[:, :, :seen], self.scaling).softmax(-1).sum(2)

    def keep(self, index: Tensor) -> None:
        """Follow an eviction: ``index`` ``[B, Hkv, m]``."""
        if self._sums is not None:
            groups = self._sums.view().shape[1] // index.shape[1]
            self._sums.keep(index.repeat_interleave(groups, 1))
        for scores in self._scores.values():
            scores.keep(index)

    def replace_by_newest(self, index: Tensor) -> None:
        """Follow an eviction of one token a head, ``index`` ``[B, Hkv, 1]``, whose place the newest takes."""
        if self._sums is not None:
            self._sums.replace_by_newest(index.repeat_interleave(self._sums.view().shape[1] // index.shape[1], 1))
        for scores in self._scores.values():
            scores.replace_by_newest(index)

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""
        for buffer in (self._window, self._sums, *self._scores.values()):
            if buffer is not None:
                buffer.reorder(rows)
        for m in self.moments:
            m.reorder(rows)

    def parts(self) -> Iterator[Part]:
        for buffer in (self._window, self._sums, *self._scores.values()):
            if buffer is not None:
                yield from buffer.parts()
        for m in self.moments:
            yield from m.parts()


def _part(buffer: TokenBuffer, rows: slice, heads: slice) -> TokenBuffer:
    """Some rows and heads of a buffer, to go on apart."""
    own = TokenBuffer(buffer.name, buffer.dtype)
    own.append(buffer.view()[rows, heads])
    return own
