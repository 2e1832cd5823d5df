"""SnapKV: what the last queries of the prompt look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.needs import Needs
from kvbench.methods.method import Eviction, check_window, param

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import TokenView


@dataclass(frozen=True)
class SnapKV(Eviction):
    """Attention of an observation window, averaged and pooled along the sequence (Li et al., arXiv 2404.14469, §4).

    The window itself is always kept. Pooling is an average over ``kernel`` neighbours with zeros beyond
    the ends, as in kvpress (the paper pools by maximum or average). A prompt no longer than the window
    is scored by its own queries.
    """

    name: ClassVar[str] = "snapkv"
    title: ClassVar[str] = "SnapKV"
    paper: ClassVar[str] = "SnapKV: LLM Knows What You are Looking for Before Generation, arXiv 2404.14469"
    window: int = param(64, "observation window, tokens")
    kernel: int = param(5, "pooling width, tokens, odd")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window, self.kernel)

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window)

    def score(self, tokens: TokenView) -> Tensor:
        from kvbench.caches.token_scores import window_votes

        return window_votes(tokens, self.window, self.kernel)
