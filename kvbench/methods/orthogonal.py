"""Keys and values in low-rank bases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.ranks import check_energy, check_rank, cut_artefacts
from kvbench.caches.reckon import Prompt, coefficients
from kvbench.methods.method import Method, param
from kvbench.spec.budgets import Dial, low_ranks

if TYPE_CHECKING:
    from kvbench.caches.layer import LayerCache, LayerContext
    from kvbench.models.loading import Shape


@dataclass(frozen=True)
class Orthogonal(Method):
    """Keys (after RoPE) and values projected on orthonormal bases for each layer and KV head.

    Queries are projected on the keys' basis, so that scores are taken between coefficients and no key is rebuilt;
    values are weighed as coefficients and expanded once. Bases are the leading eigenvectors of the second moments
    on calibration text (``basis=pca``) or seeded draws (``random``, the control). ``energy`` chooses both ranks.
    """

    name: ClassVar[str] = "orthogonal"
    title: ClassVar[str] = "Orthogonal"
    family: ClassVar[str] = "low rank"
    paper: ClassVar[str] = "truncated PCA of keys after RoPE and of values; cf. Eigen Attention, arXiv 2408.05646"
    dial: ClassVar[Dial | None] = low_ranks()
    rank: int = param(0, "basis columns of keys and of values; 0 is half the head size", least=0)
    k_rank: int = param(0, "basis columns of keys; 0 is rank", least=0)
    v_rank: int = param(0, "basis columns of values; 0 is rank", least=0)
    energy: float | None = param(None, "share of the second moments kept, (0, 1], instead of ranks", within="(0, 1]")
    per_layer: bool = param(False, "energy: each layer has the smallest ranks that keep it, instead of the same for all by the mean")
    basis: str = param("pca", "pca or random", among=("pca", "random"))
    bits: int = param(0, "bits of coefficients, quantised per token: 8, 4 or 0 (dense)", among=(8, 4, 0))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_energy(self.energy, self.basis, rank=self.rank, k_rank=self.k_rank, v_rank=self.v_rank)

    def check(self, shape: Shape) -> None:
        if self.energy is not None:
            return
        k_rank, v_rank = self._ranks(shape.head_dim)
        if not (self.k_rank and self.v_rank):
            check_rank(shape.head_dim, self.bits, rank=self.rank or shape.head_dim // 2)
        check_rank(shape.head_dim, self.bits, k_rank=k_rank, v_rank=v_rank)

    def _ranks(self, head_dim: int) -> tuple[int, int]:
        both = self.rank or head_dim // 2
        return self.k_rank or both, self.v_rank or both

    @property
    def artefacts(self) -> tuple[str, ...]:
        return cut_artefacts(self.basis, self.energy, "key", "value")

    def stored(self, prompt: Prompt) -> int | None:
        if self.energy is not None:
            return None
        ranks = self._ranks(prompt.head_dim)
        return sum(coefficients(prompt, prompt.tokens, prompt.kv_heads, rank, self.bits, rank) for rank in ranks)

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.basis import Cut
        from kvbench.caches.lowrank import OrthogonalLayer

        keys, values = (Cut(self.basis, r, self.energy, self.per_layer, self.bits) for r in self._ranks(context.head_dim))
        return OrthogonalLayer(context, keys.projection(context, "key"), values.projection(context, "value"))


@dataclass(frozen=True)
class OrthogonalInt8(Orthogonal):
    """As ``orthogonal``, with coefficients in 8 bits."""

    name: ClassVar[str] = "orthogonal_int8"
    title: ClassVar[str] = "Orthogonal int8"
    bits: int = 8


@dataclass(frozen=True)
class OrthogonalInt4(Orthogonal):
    """As ``orthogonal``, with coefficients in 4 bits."""

    name: ClassVar[str] = "orthogonal_int4"
    title: ClassVar[str] = "Orthogonal int4"
    bits: int = 4
