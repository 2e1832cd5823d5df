"""Values in a low-rank basis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.methods.base import Method, param

if TYPE_CHECKING:
    from kvbench.caches.layer import LayerCache, LayerContext
    from kvbench.models import Shape


@dataclass(frozen=True)
class VLowRank(Method):
    """Values projected on an orthonormal basis of ``rank`` columns for each layer and KV head; keys untouched.

    ``basis=pca`` is the leading eigenvectors of the values' second moment on calibration text, ``random`` a
    seeded orthonormal draw, the control. ``bits`` quantises the coefficients per token (0 keeps them dense).
    """

    name: ClassVar[str] = "v_lowrank"
    title: ClassVar[str] = "V low rank"
    family: ClassVar[str] = "low rank"
    paper: ClassVar[str] = "truncated PCA of values; cf. Palu, arXiv 2407.21118"
    calibration: ClassVar[str] = "pca"
    rank: int = param(0, "basis columns; 0 is half the head size")
    basis: str = param("pca", "pca or random")
    bits: int = param(0, "bits of coefficients: 8, 4 or 0 (dense)")

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank={self.rank}; it must be 0 or more")
        if self.basis not in ("pca", "random"):
            raise ValueError(f"basis={self.basis}; it must be pca or random")
        if self.bits not in (0, 4, 8):
            raise ValueError(f"bits={self.bits}; it must be 8, 4 or 0 (dense)")

    def check(self, shape: Shape) -> None:
        if self.rank > shape.head_dim:
            raise ValueError(f"rank={self.rank} is above the head size; the largest is {shape.head_dim}")
        rank = self._rank(shape.head_dim)
        if self.bits == 4 and rank % 2:
            raise ValueError(f"rank={rank} is odd, and two 4-bit codes fill a byte; the nearest even rank is {max(2, rank - 1)}")

    def _rank(self, head_dim: int) -> int:
        return self.rank or head_dim // 2

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.lowrank import ValueLowRankLayer
        from kvbench.caches.packing import Scheme

        rank = self._rank(context.head_dim)
        basis = context.artefacts[f"value_{self.basis}"][:, :, :rank].contiguous()
        return ValueLowRankLayer(context, basis, Scheme(self.bits, rank) if self.bits else None)
