"""LagKV: tokens that stand out against the partition that follows theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.methods.method import Eviction, param

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import TokenView


@dataclass(frozen=True)
class LagKV(Eviction):
    """Ranks the tokens of a partition by their spread over channels on the scale of the next one (Liang et al., arXiv 2504.04704, §2).

    After ``n_sink`` tokens come partitions of ``lag_size``. Keys, and likewise values, are scaled channel by
    channel to the minimum and maximum of the partition that follows; a token's worth is the softmax over its
    partition of the standard deviation over channels, the mean of keys' and values'. Only its rank within the
    partition counts, so every partition loses alike. The last whole partition and what follows it have no
    reference: they are kept before all ranked tokens, the newest first, and the sinks before them.

    Where equal ranks of several partitions meet the cut, later ones stay (kvpress leaves it open). With the
    defaults nothing is ranked below 260 tokens, and a prompt of 512 keeps just its sinks and its last 252
    at a ratio of 0.5. While streaming, partitions are those of the kept tokens in order of position.
    """

    name: ClassVar[str] = "lagkv"
    title: ClassVar[str] = "LagKV"
    in_order: ClassVar[bool] = True
    paper: ClassVar[str] = "LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens Are Important, arXiv 2504.04704"
    n_sink: int = param(4, "first tokens always kept", least=0)
    lag_size: int = param(128, "partition, tokens", least=1)
    cross_scoring: bool = param(False, "compare scores across partitions instead of ranks within them (for adakv)")

    def score(self, tokens: TokenView) -> Tensor:
        import torch

        scores = torch.ones(tokens.keys.shape[:3], dtype=tokens.wide, device=tokens.keys.device)
        partitions = (tokens.keys.shape[2] - self.n_sink) // self.lag_size
        if partitions > 1:
            ranked = slice(self.n_sink, self.n_sink + (partitions - 1) * self.lag_size)
            scores[:, :, ranked] = self._worth(tokens, partitions).flatten(2)
        scores[:, :, : self.n_sink] = torch.finfo(scores.dtype).max
        return scores

    def _worth(self, tokens: TokenView, partitions: int) -> Tensor:
        """``[B, Hkv, partitions − 1, lag_size]`` in [0, 1): ranks, or with ``cross_scoring`` the softmaxes themselves."""
        import torch

        whole, shape = slice(self.n_sink, self.n_sink + partitions * self.lag_size), (partitions, self.lag_size)
        k, v = (_spread(torch.unflatten(x[:, :, whole].to(tokens.wide), 2, shape)) for x in (tokens.keys, tokens.values))
        worth = (k + v) / 2
        if self.cross_scoring:
            return worth
        return worth.argsort(dim=-1, stable=True).argsort(dim=-1).to(worth.dtype) / self.lag_size


def _spread(x: Tensor) -> Tensor:
    """Softmax over each partition of the channels' standard deviation: ``[B, H, P, L, D]`` → ``[B, H, P − 1, L]``."""
    import torch

    low, high = x[:, :, 1:].amin(3, keepdim=True), x[:, :, 1:].amax(3, keepdim=True)
    scale = (high - low).clamp_min(torch.finfo(x.dtype).eps)  # a channel that is constant there cannot be scaled to its range
    return ((x[:, :, :-1] - low) / scale).std(-1).softmax(-1)
