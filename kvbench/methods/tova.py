"""TOVA: what the last query looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.needs import Needs
from kvbench.methods.method import Eviction

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import TokenView


@dataclass(frozen=True)
class TOVA(Eviction):
    """Attention of the newest query, averaged over all heads of the layer (Oren et al., arXiv 2401.06104, §3.2).

    The newest token is always kept, and all KV heads of a layer keep the same tokens. The paper evicts at
    every step, which is ``--protocol streaming``; by default the prompt is cut once, as in kvpress.
    """

    name: ClassVar[str] = "tova"
    title: ClassVar[str] = "TOVA"
    paper: ClassVar[str] = "Transformers are Multi-State RNNs, arXiv 2401.06104"

    @property
    def needs(self) -> Needs:
        return Needs(window=1)

    def score(self, tokens: TokenView) -> Tensor:
        from kvbench.caches.token_scores import certain

        received = tokens.window_attention(1)[:, :, 0]  # [B, Hq, T]
        shared = received.mean(1, keepdim=True).expand(-1, tokens.keys.shape[1], -1)
        return certain(shared, tokens.positions == tokens.seen - 1)
