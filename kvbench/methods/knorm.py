"""Keys of small norm are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.methods.method import Eviction

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import TokenView


@dataclass(frozen=True)
class KNorm(Eviction):
    """Scores a token by minus the L2 norm of its key (Devoto et al., arXiv 2406.11430, §3).

    Repeated tokens have keys of equal norm in the first layer; which of them stays at the cut is rounding,
    and may differ between devices and implementations (ties go to the later token here).
    """

    name: ClassVar[str] = "knorm"
    title: ClassVar[str] = "Key norm"
    paper: ClassVar[str] = "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression, arXiv 2406.11430"

    def score(self, tokens: TokenView) -> Tensor:
        norm: Tensor = tokens.keys.to(tokens.wide).norm(dim=-1)
        return -norm
