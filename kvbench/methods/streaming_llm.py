"""StreamingLLM: attention sinks and a recent window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.methods.method import Eviction, param

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import TokenView


@dataclass(frozen=True)
class StreamingLLM(Eviction):
    """Keeps the first ``n_sink`` tokens and the newest (Xiao et al., arXiv 2309.17453, §3.2).

    Kept keys keep their RoPE positions; the paper renumbers them inside the cache. As in kvpress, the
    prompt is cut once and the cache then grows; under ``--protocol streaming`` the window slides.
    """

    name: ClassVar[str] = "streaming_llm"
    title: ClassVar[str] = "StreamingLLM"
    paper: ClassVar[str] = "Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453"
    n_sink: int = param(4, "first tokens always kept", least=0)

    def score(self, tokens: TokenView) -> Tensor:
        return tokens.positions.masked_fill(tokens.positions < self.n_sink, tokens.seen)
