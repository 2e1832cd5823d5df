"""KeyDiff: keys unlike the others are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.methods.method import Eviction

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import TokenView


@dataclass(frozen=True)
class KeyDiff(Eviction):
    """Scores a token by minus the cosine of its key with the mean of all normalised keys (Park et al., arXiv 2504.15364, §3).

    The paper evicts block by block while the prompt is read. Here, as in kvpress, a prompt is cut once;
    ``--protocol streaming`` with ``--chunk-size`` gives the block-wise form, the mean then being that of the kept keys.
    """

    name: ClassVar[str] = "keydiff"
    title: ClassVar[str] = "KeyDiff"
    paper: ClassVar[str] = "KeyDiff: Key Similarity-Based KV Cache Eviction, arXiv 2504.15364"

    def score(self, tokens: TokenView) -> Tensor:
        from torch.nn.functional import cosine_similarity, normalize

        keys = tokens.keys.to(tokens.wide)
        anchor = normalize(keys, dim=-1).mean(2, keepdim=True)  # [B, Hkv, 1, D]
        return -cosine_similarity(keys, anchor, dim=-1)
