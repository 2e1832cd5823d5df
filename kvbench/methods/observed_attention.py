"""The attention that each token really received."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.needs import Needs
from kvbench.methods.method import Eviction

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import TokenView


@dataclass(frozen=True)
class ObservedAttention(Eviction):
    """Mean attention over all queries that see the token (the score of kvpress's ObservedAttention, after H2O, arXiv 2306.14048).

    Needs every attention weight of the prompt. kvbench computes them in slabs beside its own attention,
    and counts their time in this method's TTFT.
    """

    name: ClassVar[str] = "observed_attention"
    title: ClassVar[str] = "Observed attention"
    paper: ClassVar[str] = "H2O: Heavy-Hitter Oracle, arXiv 2306.14048 (averaged, as in kvpress)"

    @property
    def needs(self) -> Needs:
        return Needs(attention=True)

    def score(self, tokens: TokenView) -> Tensor:
        sums = tokens.observed.attention
        if sums is None:
            raise ValueError("observed_attention was given no attention sums")
        return tokens.over_groups(sums) / (tokens.seen - tokens.positions)
