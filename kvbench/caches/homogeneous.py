"""Fewer tokens by merging neighbours: one key for several, the sum of their values, and how many they are.

AsymKV, arXiv 2506.05410. Adjacent keys are alike, adjacent values are not, so keys bear the loss. Once
tokens share a key, attention over them is unchanged when their values are summed and the softmax counts each
entry as often as it has tokens ("locally merged attention"):

    out = Σ_j e^(q·k_j) v_j / Σ_j c_j e^(q·k_j),    v_j the sum of the values of the c_j tokens of entry j.

Here an entry holds the mean ``v_j / c_j`` and ``c_j``, so that this is ordinary attention with ``log c_j`` added to the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

import torch
from torch import Tensor

from kvbench.caches.attend import attend, fold
from kvbench.caches.buffers import TokenBuffer, gather_tokens
from kvbench.caches.layer import LayerCache, LayerContext, Restored, TokenView
from kvbench.caches.ledger import Part
from kvbench.caches.needs import Needs
from kvbench.caches.reckon import kept_count
from kvbench.caches.rope import Rope, half_turn
from kvbench.caches.stores import DenseStore, Store


def lowest_pairs(mass: list[float], merges: int) -> list[int]:
    """Tokens in each entry after ``merges`` times joining the two adjacent entries of the lowest sum of ``mass``.

    A joined entry has the sum of its tokens' mass; of equal sums the earliest is joined.
    """
    size, mass = [1] * len(mass), list(mass)
    after = [*range(1, len(mass)), -1]
    before = [-1, *range(len(mass) - 1)]
    heap = [(mass[i] + mass[i + 1], i, i + 1, 2) for i in range(len(mass) - 1)]
    heapify(heap)
    while merges:
        _, left, right, tokens = heappop(heap)
        if size[left] == 0 or after[left] != right or size[left] + size[right] != tokens:
            continue  # one of the two has since been joined to another
        mass[left] += mass[right]
        size[left], size[right] = tokens, 0
        after[left] = following = after[right]
        if following >= 0:
            before[following] = left
            heappush(heap, (mass[left] + mass[following], left, following, tokens + size[following]))
        if before[left] >= 0:
            heappush(heap, (mass[before[left]] + mass[left], before[left], left, size[before[left]] + tokens))
        merges -= 1
    return [n for n in size if n]


def last_queries(tokens: TokenView, count: int) -> Tensor:
    """The newest ``count`` queries, ``[B, Hq, count, D]``, RoPE applied."""
    if tokens.observed.window is None:
        raise ValueError("a method that reads window queries must declare them in needs")
    return tokens.observed.window[:, :, -count:]


def fisher(tokens: TokenView, probs: Tensor, span: slice) -> Tensor:
    """Diagonal of the Fisher information about each key before RoPE, ``[B, Hkv, n, D]`` for the tokens of ``span``.

    A query's output moves by ``∂o/∂k_m = a_m (v_m − o) (s R_mᵀ q)ᵀ``, with its attention ``a_m``, the softmax scale s and
    RoPE's rotation ``R_m``. Where the gradient of the loss is ``g`` at ``o``, the key's is ``(∂o/∂k_m)ᵀ g``; over a ``g`` of
    unit variance in each query and channel, uncorrelated, its square is on average ``Σ_q (a_m s)² ‖v_m − o‖² (R_mᵀ q)²``.

    Args:
        probs: Attention ``[B, Hq, w, T]`` of the window queries over all tokens.
    """
    heads, wide = tokens.keys.shape[1], tokens.wide
    values = tokens.values.to(wide)
    a = fold(probs, heads)  # [B, Hkv, G·w, T]
    outputs, own = a @ values, values[:, :, span]
    apart = own.square().sum(-1)[:, :, None] + outputs.square().sum(-1, keepdim=True) - 2 * outputs @ own.transpose(2, 3)
    weights = (a[..., span] * tokens.scaling).square() * apart.clamp_min(0)  # [B, Hkv, G·w, n]
    q = fold(last_queries(tokens, probs.shape[2]).to(wide), heads)
    return _squares_in_key_frames(tokens.layer.rope, q, weights.transpose(2, 3), span)


def _squares_in_key_frames(rope: Rope | None, q: Tensor, weights: Tensor, span: slice) -> Tensor:
    """``Σ_q weights (R_mᵀ q)²``: ``[B, H, n, D]`` from ``q`` ``[B, H, w, D]`` and ``weights`` ``[B, H, n, w]``."""
    if rope is None:
        return weights @ q.square()
    cos, sin = (t[span] for t in rope.tables(0, span.stop, q))  # [n, R]
    flat, turned = q[..., : cos.shape[1]], half_turn(q[..., : cos.shape[1]])
    squares = (
        cos.square() * (weights @ flat.square()) + sin.square() * (weights @ turned.square()) - 2 * cos * sin * (weights @ (flat * turned))
    )
    return torch.cat((squares.clamp_min(0), weights @ q[..., cos.shape[1] :].square()), -1)


class HomogeneousLayer(LayerCache):
    """The prompt with adjacent tokens merged down to ``kept_count(prompt, ratio)`` entries; it grows by whole tokens after it.

    The first ``sinks`` tokens stay whole, and the newest ``window``, whose queries say which neighbours weigh least and
    by how much each key counts. Where the budget is small, sinks have at most a quarter of its entries and the window half of the
    rest. All heads of a layer merge the same tokens, so that an entry has one position. Keys are merged before RoPE and rotated
    at the position of the entry's last token.

    Args:
        ratio: Fraction of the prompt's entries removed.
        weights: What keys are weighed by: ``fisher``, ``attention`` or ``cardinality`` (each token alike).
    """

    def __init__(self, context: LayerContext, ratio: float, window: int, sinks: int, weights: str) -> None:
        super().__init__(context, Needs(window=window))
        self.ratio, self.window, self.sinks, self.weights = ratio, window, sinks, weights
        self.keys_store = DenseStore("keys", context.dtype)
        self.values_store = DenseStore("values", context.dtype)
        self.counts = TokenBuffer("tokens in each entry", torch.int32)  # [B, 1, prompt's entries, 1]; later tokens stand alone

    @property
    def length(self) -> int:
        return self.keys_store.length

    def compress(self, prompt: TokenView) -> None:
        total = prompt.keys.shape[2]
        kept = kept_count(total, self.ratio)
        sinks = min(self.sinks, kept // 4)
        tail = min(self.window, (kept - sinks) // 2)
        probs = prompt.window_attention(max(1, tail))
        span = slice(sinks, total - tail)
        sizes = _sizes(probs[..., span].sum((1, 2)), total - kept)  # [B, entries of the span]
        whole = sizes.new_ones(sizes.shape[0], max(sinks, tail))
        self.counts.append(torch.cat((whole[:, :sinks], sizes, whole[:, :tail]), 1)[:, None, :, None])
        keys, values = self._merged(prompt, probs, span, sizes)
        for store, x, middle in ((self.keys_store, prompt.keys, keys), (self.values_store, prompt.values, values)):
            store.append(torch.cat((x[:, :, :sinks], middle.to(x.dtype), x[:, :, span.stop :]), 2))

    def _merged(self, prompt: TokenView, probs: Tensor, span: slice, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """One key and the mean value of each entry of the span, ``[B, Hkv, entries, D]``."""
        wide, rope = prompt.wide, self.context.rope
        last = span.start + sizes.cumsum(1) - 1  # [B, entries], position of each entry's last token
        values = sums(prompt.values[:, :, span].to(wide), sizes) / sizes[:, None, :, None]
        flat = prompt.keys.to(wide) if rope is None else rope.unrotate(prompt.keys, 0)
        weights = self._weights(prompt, probs, span) + torch.finfo(wide).tiny  # a token that nothing looks at counts as its neighbours
        keys = sums(flat[:, :, span] * weights, sizes) / sums(weights, sizes)
        if rope is not None:
            cos, sin = (table[last][:, None] for table in rope.tables(0, span.stop, keys))
            keys = rope.turn(keys, cos, sin)
        at = last[:, None, :, None].expand_as(keys)
        return torch.where(sizes[:, None, :, None] == 1, prompt.keys.to(wide).gather(2, at), keys), values

    def _weights(self, prompt: TokenView, probs: Tensor, span: slice) -> Tensor:
        """``[B, Hkv, n, D or 1]`` for the tokens of the span."""
        if self.weights == "fisher":
            return fisher(prompt, probs, span)
        received = fold(probs, prompt.keys.shape[1]).sum(2)[:, :, span, None]
        return received if self.weights == "attention" else torch.ones_like(received)

    def restored(self, prompt: TokenView, dtype: torch.dtype) -> Restored:
        """Every token as its entry: attention counts an entry as so many tokens of that key and that value."""
        entries = torch.stack([torch.repeat_interleave(row) for row in self.counts.view()[:, 0, :, 0]])  # [B, T]
        index = entries[:, None].expand(prompt.positions.shape)
        keys, values = (gather_tokens(store.read(dtype), index) for store in (self.keys_store, self.values_store))
        return Restored(keys, values, torch.ones_like(prompt.positions, dtype=torch.bool))

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.keys_store.append(keys)
        self.values_store.append(values)

    def attend(self, q: Tensor) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        bias = self.counts.view()[..., 0].to(wide).log().to(q.dtype)[:, :, None]  # [B, 1, 1, entries]
        bias = torch.nn.functional.pad(bias, (0, self.length - self.counts.length))
        return attend(q, self.keys_store.read(q.dtype), self.values_store.read(q.dtype), self.scaling, bias=bias)

    def stores(self) -> Iterator[Store]:
        yield self.keys_store
        yield self.values_store

    def parts(self) -> Iterator[Part]:
        yield from super().parts()
        yield from self.counts.parts()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.counts.reorder(beam_idx)


def _sizes(mass: Tensor, merges: int) -> Tensor:
    """:func:`lowest_pairs` of each row of ``mass`` ``[B, n]``: ``[B, n − merges]``, int32."""
    rows = [lowest_pairs(row, merges) for row in mass.tolist()]
    return torch.tensor(rows, dtype=torch.int32, device=mass.device)


def sums(x: Tensor, sizes: Tensor) -> Tensor:
    """Sums over runs of tokens: ``x`` ``[B, H, n, W]`` in runs of ``sizes`` ``[B, entries]`` → ``[B, H, entries, W]``."""
    flat = x.permute(0, 2, 1, 3).flatten(2)  # [B, n, H·W]
    summed = torch.segment_reduce(flat.contiguous(), "sum", lengths=sizes.long(), axis=1)
    return torch.unflatten(summed, 2, (x.shape[1], x.shape[3])).permute(0, 2, 1, 3)
