"""PyramidKV: the lower layers keep more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.needs import Needs
from kvbench.caches.reckon import Place
from kvbench.methods.method import Eviction, check_window, param

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import TokenView


@dataclass(frozen=True)
class PyramidKV(Eviction):
    """SnapKV's score with budgets that fall linearly from the first layer to the last (Cai et al., arXiv 2406.02069, §4).

    The mean over layers is n·(1 − ratio) tokens. The last layer keeps 1/``beta`` of that and the first as much
    above it; where the first would keep more than all but the window, it keeps just those and the last one
    gains the rest. Where the last would keep less than the window, all layers keep alike, as in kvpress: with
    the defaults that is below 128 tokens at a ratio of 0.5, below 5,120 at 0.75 and below 12,800 at 0.9.
    """

    name: ClassVar[str] = "pyramidkv"
    title: ClassVar[str] = "PyramidKV"
    paper: ClassVar[str] = "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling, arXiv 2406.02069"
    window: int = param(64, "observation window, tokens")
    kernel: int = param(5, "pooling width, tokens, odd")
    beta: int = param(20, "steepness: the last layer keeps 1/beta of the mean, at least 1", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window, self.kernel)

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window)

    def kept(self, tokens: int, layer: Place) -> int:
        mean = tokens * (1.0 - self.compression_ratio)
        last = mean / self.beta
        first = 2 * mean - last
        if first >= tokens - self.window:
            first = tokens - self.window
            last = 2 * mean - first
        if not tokens >= first >= last >= self.window:
            return max(1, round(mean))
        height = layer.index / (layer.layers - 1) if layer.layers > 1 else 0.5
        return round(first - height * (first - last))

    def score(self, tokens: TokenView) -> Tensor:
        from kvbench.caches.token_scores import window_votes

        return window_votes(tokens, self.window, self.kernel)
