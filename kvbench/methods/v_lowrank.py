"""Values in a low-rank basis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.ranks import check_energy, check_rank, cut_artefacts
from kvbench.caches.reckon import Prompt, coefficients, dense
from kvbench.methods.method import Method, param
from kvbench.spec.budgets import Dial, Range

if TYPE_CHECKING:
    from kvbench.caches.layer import LayerCache, LayerContext
    from kvbench.models.loading import Shape


@dataclass(frozen=True)
class VLowRank(Method):
    """Values projected on an orthonormal basis of ``rank`` columns for each layer and KV head; keys untouched.

    ``basis=pca`` is the leading eigenvectors of the values' second moment on calibration text, ``random`` a
    seeded orthonormal draw, the control. ``energy`` chooses the rank by the share of that moment kept. ``bits``
    quantises the coefficients per token. The basis is folded into the value and output projections where the
    model allows, and then costs no work per token.
    """

    name: ClassVar[str] = "v_lowrank"
    title: ClassVar[str] = "V low rank"
    family: ClassVar[str] = "low rank"
    paper: ClassVar[str] = "truncated PCA of values; cf. Palu, arXiv 2407.21118"
    dial: ClassVar[Dial | None] = Range("rank", most="head_dim", least=1, whole=True)
    rank: int = param(0, "basis columns; 0 is half the head size", least=0)
    energy: float | None = param(None, "share of the second moment kept, (0, 1], instead of a rank", within="(0, 1]")
    per_layer: bool = param(False, "energy: each layer has the smallest rank that keeps it, instead of one rank for all by the mean")
    basis: str = param("pca", "pca or random", among=("pca", "random"))
    bits: int = param(0, "bits of coefficients: 8, 4 or 0 (dense)", among=(8, 4, 0))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_energy(self.energy, self.basis, rank=self.rank)

    def check(self, shape: Shape) -> None:
        if self.energy is None:
            check_rank(shape.head_dim, self.bits, rank=self._rank(shape.head_dim))

    def _rank(self, head_dim: int) -> int:
        return self.rank or head_dim // 2

    @property
    def artefacts(self) -> tuple[str, ...]:
        return cut_artefacts(self.basis, self.energy, "value")

    def stored(self, prompt: Prompt) -> int | None:
        if self.energy is not None:
            return None
        rank = self._rank(prompt.head_dim)
        return dense(prompt, prompt.tokens) + coefficients(prompt, prompt.tokens, prompt.kv_heads, rank, self.bits, rank)

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.basis import Cut
        from kvbench.caches.lowrank import ValueLowRankLayer

        cut = Cut(self.basis, self._rank(context.head_dim), self.energy, self.per_layer, self.bits)
        return ValueLowRankLayer(context, cut.projection(context, "value"))
