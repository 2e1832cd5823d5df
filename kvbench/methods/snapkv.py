"""SnapKV: what the last queries of the prompt look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.needs import Needs
from kvbench.methods.base import Eviction, param

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
        if self.window < 1:
            raise ValueError(f"window={self.window}; it must be at least 1")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}; it must be odd, for example {max(1, self.kernel | 1)}")

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window)

    def score(self, tokens: TokenView) -> Tensor:
        from kvbench.caches.scores import window_votes

        return window_votes(tokens, self.window, self.kernel)
