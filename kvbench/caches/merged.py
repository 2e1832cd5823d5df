"""Fewer layers: two neighbouring layers share the directions of their prompt's keys and values.

MiniCache, arXiv 2405.14366, §4. A state is its magnitude times its direction; a pair of layers keeps both
magnitudes, one direction between the two, and both states of the tokens whose directions lie too far apart.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvbench.caches.dense import DenseLayer
from kvbench.caches.layer_context import LayerContext
from kvbench.caches.ledger import Part
from kvbench.caches.stores import DenseStore
from kvbench.caches.views import TokenView


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle between unit vectors ``[..., W]`` → ``[...]``, radians, as exact at 0 and π as between (arccos is not)."""
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The unit vector at ``t`` of the arc from ``a`` to ``b``, ``[..., W]`` (MiniCache, Eq. 3).

    Where the two are one, or opposite so that the arc is not determined, the weights are the limit's, 1 − t and t.
    """
    omega = angle(a, b)[..., None]
    sine = omega.sin()
    flat = sine < torch.finfo(sine.dtype).eps
    safe = sine.masked_fill(flat, 1.0)
    left = torch.where(flat, 1 - t, ((1 - t) * omega).sin() / safe)
    right = torch.where(flat, t, (t * omega).sin() / safe)
    return left * a + right * b


def too_far(distance: Tensor, gamma: float) -> Tensor:
    """Tokens to keep unmerged, ``[..., T]``: those whose distance is within ``gamma`` of the range below the largest.

    MiniCache's threshold of token retention, ``d_min + gamma (d_max − d_min)``, on the similarity 1 − distance.
    """
    far, near = distance.amax(-1, keepdim=True), distance.amin(-1, keepdim=True)
    return distance > far - gamma * (far - near)


class MergedStates:
    """Keys, or values, of a prompt in two layers: 0 is the lower, 1 the upper.

    A state is one token of all KV heads together (U = 1, W = Hkv · D), or of one head (U = Hkv, W = D). Merged
    tokens have no copy of their own, and unmerged ones no direction or magnitudes (the paper counts those too).

    Args:
        name: ``key`` or ``value``; prefixes the ledger's items.
        lower, upper: ``[B, Hkv, T, D]``, on the device where the pair is to be stored.
        t: Where between the lower's direction (0) and the upper's (1) the shared one lies.
        gamma: Share of the range of distances that is kept unmerged. per_head: Merge each head by itself.
        dtype: Format in which everything is kept.
    """

    def __init__(self, name: str, lower: Tensor, upper: Tensor, *, t: float, gamma: float, per_head: bool, dtype: torch.dtype) -> None:
        self.name, self.heads = name, lower.shape[1]
        states = [x if per_head else x.transpose(1, 2).flatten(2)[:, None] for x in (lower, upper)]  # each [B, U, T, W]
        self.shape = states[0].shape[:3]
        wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in states]
        norms = [x.norm(dim=-1, keepdim=True) for x in wide]
        below, above = (x / n.clamp_min(torch.finfo(n.dtype).tiny) for x, n in zip(wide, norms, strict=True))
        alone = too_far(angle(below, above) / torch.pi, gamma)  # [B, U, T]; rows keep different numbers, so tokens lie flat
        self.directions = slerp(below, above, t)[~alone].to(dtype)  # [M, W]
        self.magnitudes = [n[~alone].to(dtype) for n in norms]  # each [M, 1]
        self.kept = [x[alone].to(dtype) for x in states]  # each [N, W], M + N = B · U · T
        self.tokens = alone.flatten().nonzero()[:, 0].int()  # [N], places among B · U · T

    @property
    def length(self) -> int:
        return self.shape[2]

    def _alone(self) -> Tensor:
        """``[B · U · T]``, True at unmerged tokens."""
        alone = torch.zeros(self.shape.numel(), dtype=torch.bool, device=self.tokens.device)
        return alone.index_fill_(0, self.tokens.long(), True)

    def read(self, side: int, dtype: torch.dtype) -> Tensor:
        """Layer ``side``'s states ``[B, Hkv, T, D]`` restored: rescaled (Eq. 2), the unmerged put back."""
        order = self._alone().byte().argsort(stable=True)  # merged tokens first; nonzero would wait for the device
        merged, width = self.directions.shape
        whole = self.directions.new_empty(len(order), width, dtype=dtype)
        whole.index_copy_(0, order[:merged], self.directions.to(dtype) * self.magnitudes[side].to(dtype))
        whole.index_copy_(0, order[merged:], self.kept[side].to(dtype))
        b, units, tokens = self.shape
        return whole.view(b, units, tokens, self.heads // units, -1).transpose(2, 3).flatten(1, 2)

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch, for both layers."""
        alone = self._alone()
        nth = torch.where(alone, alone.cumsum(0), (~alone).cumsum(0)) - 1  # each token's place among its kind
        alone, nth = (x.view(self.shape[0], -1)[rows.to(x.device)].flatten() for x in (alone, nth))
        self.directions = self.directions[nth[~alone]]
        self.magnitudes = [x[nth[~alone]] for x in self.magnitudes]
        self.kept = [x[nth[alone]] for x in self.kept]
        self.tokens = alone.nonzero()[:, 0].int()
        self.shape = torch.Size((len(rows), *self.shape[1:]))

    def shared_parts(self) -> Iterator[Part]:
        """What the two layers hold together."""
        yield Part(f"{self.name} directions", self.directions, self.directions.nbytes)
        yield Part(f"unmerged {self.name} tokens", self.tokens, self.tokens.nbytes)

    def own_parts(self, side: int) -> Iterator[Part]:
        """What one layer holds alone."""
        yield Part(f"{self.name} magnitudes", self.magnitudes[side], self.magnitudes[side].nbytes)
        yield Part(f"unmerged {self.name}s", self.kept[side], self.kept[side].nbytes)


class MergedLayer(DenseLayer):
    """One of two layers whose prompt is merged; tokens after the prompt stay dense, each layer its own.

    The lower layer holds its prompt dense until the upper one has its own and merges the two (:meth:`pair_with`
    tells the upper which the lower is). A layer without a partner stays dense. The paper also merges each new
    token once the upper layer has read it. What the lower layer holds for later tokens then depends on the
    layer above it, so several tokens could not pass layer by layer; fresh tokens stay dense here.

    Args:
        t, gamma, per_head: See :class:`MergedStates`.
    """

    def __init__(self, context: LayerContext, *, t: float, gamma: float, per_head: bool) -> None:
        super().__init__(context)
        self.t, self.gamma, self.per_head = t, gamma, per_head
        self.lower: MergedLayer | None = None
        self.merged: tuple[MergedStates, MergedStates] | None = None  # keys, values
        self.side = 0

    def pair_with(self, lower: MergedLayer) -> None:
        """Make this the upper of two layers."""
        self.lower, self.side = lower, 1

    def join_rows(self) -> None:
        """Couple each row's layer to the lower layer's of the same row; the lower has run by now."""
        if self.lower is None:
            return
        for mine, lower in zip(self.rows, self.lower.rows, strict=True):
            if isinstance(mine, MergedLayer) and isinstance(lower, MergedLayer):
                mine.pair_with(lower)

    @property
    def length(self) -> int:
        return self.keys_store.length + (self.merged[0].length if self.merged else 0)

    def compress(self, prompt: TokenView) -> None:
        """Upper of a pair: merge with what the lower holds. Otherwise: hold the prompt dense."""
        if self.lower is None:
            super().compress(prompt)
            return
        keys, values = self.lower.keys_store.buffer.view(), self.lower.values_store.buffer.view()
        if keys.shape != prompt.keys.shape:
            raise RuntimeError(
                f"the layers of a pair hold keys {tuple(keys.shape)} and {tuple(prompt.keys.shape)}, and must see the same tokens"
            )
        self.merged = self._states("key", keys, prompt.keys), self._states("value", values, prompt.values)
        self.lower.share(self.merged)

    def _states(self, name: str, lower: Tensor, upper: Tensor) -> MergedStates:
        return MergedStates(
            name, lower.to(upper.device, upper.dtype), upper, t=self.t, gamma=self.gamma, per_head=self.per_head, dtype=self.context.dtype
        )  # fmt: skip

    def share(self, merged: tuple[MergedStates, MergedStates]) -> None:
        """Lower of a pair: let the dense prompt go and read the merged one."""
        self.merged = merged
        self.keys_store = DenseStore("keys", self.context.dtype)
        self.values_store = DenseStore("values", self.context.dtype)

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Restored prompt, then fresh tokens: ``[B, Hkv, length, D]`` each."""
        if self.merged is None:
            return super().read(dtype)
        keys, values = (states.read(self.side, dtype) for states in self.merged)
        return _followed(keys, self.keys_store, dtype), _followed(values, self.values_store, dtype)

    def parts(self) -> Iterator[Part]:
        """Directions are counted once, in the upper layer."""
        yield from super().parts()
        for states in self.merged or ():
            yield from states.own_parts(self.side)
            if self.side == 1:
                yield from states.shared_parts()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        for states in self.merged or ():
            if self.side == 1:  # for both layers, once
                states.reorder(beam_idx)


def _followed(old: Tensor, new: DenseStore, dtype: torch.dtype) -> Tensor:
    """Merged tokens, then the fresh ones, on the device of those: the two layers of a pair may be on two."""
    if new.length == 0:
        return old
    fresh = new.read(dtype)
    return torch.cat((old.to(fresh.device), fresh), 2)
