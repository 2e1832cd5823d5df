"""ThinK: key channels that the queries make least use of are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.needs import Needs
from kvbench.caches.reckon import INT16, Prompt, dense
from kvbench.methods.method import Method, param
from kvbench.spec.budgets import Dial, Range

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import LayerCache, LayerContext, TokenView

DUST = 1e-9
"""Keeps 0.7 · 10 from becoming 6: products of decimal fractions fall a hair short."""


@dataclass(frozen=True)
class ThinK(Method):
    """Keeps the key channels with the largest ‖q channel‖ · ‖k channel‖, for each KV head (Xu et al., arXiv 2407.21018, §3).

    Queries are the prompt's last ``window``, of all query heads that share the KV head; keys are all of the
    prompt's. Stored are the kept channels of the prompt's keys and their indices; the prompt's newest ``recent``
    tokens and all that come after it keep every channel, as in the authors' code (kvpress zeroes the
    channels of all prompt tokens: ``recent=0``). Values are dense.
    """

    name: ClassVar[str] = "think"
    title: ClassVar[str] = "ThinK"
    family: ClassVar[str] = "key channels"
    paper: ClassVar[str] = "ThinK: Thinner Key Cache by Query-Driven Pruning, arXiv 2407.21018"
    protocols: ClassVar[tuple[str, ...]] = ("prefill",)
    dial: ClassVar[Dial | None] = Range("key_channel_compression_ratio", most=0.0, least=1.0 - 1e-6)
    key_channel_compression_ratio: float = param(0.4, "fraction of each KV head's key channels removed, [0, 1)", within="[0, 1)")
    window: int = param(32, "last queries of the prompt that vote, tokens", least=1)
    recent: int = param(32, "newest tokens of the prompt whose keys stay whole", least=0)

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window)

    def kept(self, head_dim: int) -> int:
        """Channels kept of ``head_dim``; the removed ones are rounded down, as in the authors' code."""
        return head_dim - int(head_dim * self.key_channel_compression_ratio + DUST)

    def score(self, prompt: TokenView) -> Tensor:
        """Mean squares of the window's queries, over the group, times mean squares of the keys: ``[B, Hkv, D]``.

        Their square root is the paper's product of norms, but for a factor that all channels share.
        """
        import torch

        if prompt.observed.window is None:
            raise ValueError("think reads window queries, and none were observed")
        queries = prompt.observed.window[:, :, -self.window :].to(prompt.wide)
        votes = torch.unflatten(queries.square().mean(2), 1, (prompt.keys.shape[1], -1)).mean(2)  # over the window, then the group
        return votes * prompt.keys.to(prompt.wide).square().mean(2)

    def stored(self, prompt: Prompt) -> int:
        old, kept = max(0, prompt.tokens - self.recent), self.kept(prompt.head_dim)
        thin = dense(prompt, old, kept) + prompt.kv_heads * kept * INT16 if old else 0
        whole = dense(prompt, prompt.tokens - old) if old < prompt.tokens else 0
        return thin + whole + dense(prompt, prompt.tokens)

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.channels import ThinLayer

        return ThinLayer(context, self, kept=self.kept(context.head_dim), recent=self.recent)
