"""H2O: heavy hitters and the newest tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.needs import Needs
from kvbench.methods.method import Eviction, param

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import TokenView


@dataclass(frozen=True)
class H2O(Eviction):
    """Keeps the newest tokens and those that received most attention so far (Zhang et al., arXiv 2306.14048, Algorithm 1).

    A token's score is the attention that it received, summed over all queries since it came and averaged over the
    query heads of its KV head; the sums go on while decoding, and after every ``interval`` tokens (each one, as in
    the paper) the least of the older tokens is evicted. Half of the budget is the newest tokens, as in the
    paper's experiments. Sums, unlike means, favour early tokens; see ``observed_attention``.
    """

    name: ClassVar[str] = "h2o"
    title: ClassVar[str] = "H2O"
    paper: ClassVar[str] = "H2O: Heavy-Hitter Oracle for Efficient Generative Inference, arXiv 2306.14048"
    decode: str = "hold"
    interval: int = 1
    recent: float = param(0.5, "share of the kept tokens that is the newest, [0, 1]", within="[0, 1]")

    @property
    def needs(self) -> Needs:
        return Needs(attention=True)

    def score(self, tokens: TokenView) -> Tensor:
        from kvbench.caches.token_scores import certain

        sums = tokens.observed.attention
        if sums is None or tokens.budget is None:
            raise ValueError("h2o was given no attention sums")
        newest = tokens.positions >= tokens.seen - round(self.recent * tokens.budget)
        return certain(tokens.over_groups(sums), newest)
