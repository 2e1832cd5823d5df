"""Palu: head groups in low rank, keys before RoPE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.ranks import check_energy, check_rank, cut_artefacts, heads_in_group
from kvbench.caches.reckon import Prompt, coefficients
from kvbench.methods.method import Method, param
from kvbench.spec.budgets import Dial, low_ranks

if TYPE_CHECKING:
    from kvbench.caches.layer import LayerCache, LayerContext
    from kvbench.models.loading import Shape

BITS = (8, 4, 3, 2, 0)


@dataclass(frozen=True)
class Palu(Method):
    """Low-rank latents of groups of KV heads, keys rebuilt and rotated as they are read (Chang et al., arXiv 2407.21118).

    The paper decomposes the projections' weights by an SVD whitened with the calibration text's inputs (§3.1, G-LRD of
    §3.2); that is the PCA of the projections' outputs about zero, which is what is computed here. Its search of ranks
    by Fisher information (§3.3) is replaced by ``energy`` with ``per_layer``. ``bits`` quantises each token's latent
    after a Hadamard rotation that is part of the basis (§3.4); 3 and 2 are the paper's.
    The prompt's own attention is uncompressed in the ``prefill`` protocol; ``streaming`` is what the paper's model does.
    """

    name: ClassVar[str] = "palu"
    title: ClassVar[str] = "Palu"
    family: ClassVar[str] = "low rank"
    paper: ClassVar[str] = "Palu: KV-Cache Compression with Low-Rank Projection, arXiv 2407.21118"
    variants: ClassVar[tuple[str, ...]] = ("palu", "palu:bits=4")
    dial: ClassVar[Dial | None] = low_ranks()
    rank: int = param(0, "basis columns per KV head, a group of g heads having g times as many; 0 is half the head size", least=0)
    k_rank: int = param(0, "basis columns of keys; 0 is rank", least=0)
    v_rank: int = param(0, "basis columns of values; 0 is rank", least=0)
    group_heads: int = param(0, "KV heads that share a basis; 0 is the paper's 4, or the most below it that divide them", least=0)
    energy: float | None = param(None, "share of the second moments kept, (0, 1], instead of ranks", within="(0, 1]")
    per_layer: bool = param(False, "energy: each layer has the smallest ranks that keep it, instead of the same for all by the mean")
    basis: str = param("pca", "pca or random", among=("pca", "random"))
    bits: int = param(0, "bits of latents, quantised per token: 8, 4, 3, 2 or 0 (dense)", among=BITS)
    hadamard: bool = param(True, "rotate latents before they are quantised")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_energy(self.energy, self.basis, rank=self.rank, k_rank=self.k_rank, v_rank=self.v_rank)

    def check(self, shape: Shape) -> None:
        heads = heads_in_group(self.group_heads, shape.kv_heads)
        if self.energy is not None:
            return
        k_rank, v_rank = self._ranks(shape.head_dim)
        if not (self.k_rank and self.v_rank):
            check_rank(shape.head_dim, self.bits, heads, rank=self.rank or shape.head_dim // 2)
        check_rank(shape.head_dim, self.bits, heads, k_rank=k_rank, v_rank=v_rank)

    def _ranks(self, head_dim: int) -> tuple[int, int]:
        both = self.rank or head_dim // 2
        return self.k_rank or both, self.v_rank or both

    @property
    def _sides(self) -> tuple[str, str]:
        return f"projected_key/{self.group_heads}", f"projected_value/{self.group_heads}"

    @property
    def artefacts(self) -> tuple[str, ...]:
        return cut_artefacts(self.basis, self.energy, *self._sides)

    def stored(self, prompt: Prompt) -> int | None:
        if self.energy is not None:
            return None
        heads = heads_in_group(self.group_heads, prompt.kv_heads)
        columns = [rank * heads for rank in self._ranks(prompt.head_dim)]
        return sum(coefficients(prompt, prompt.tokens, prompt.kv_heads // heads, wide, self.bits, wide) for wide in columns)

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.basis import Cut
        from kvbench.caches.lowrank import PaluLayer

        rotated = bool(self.bits) and self.hadamard
        cuts = (Cut(self.basis, r, self.energy, self.per_layer, self.bits, rotated) for r in self._ranks(context.head_dim))
        keys, values = (cut.projection(context, side) for cut, side in zip(cuts, self._sides, strict=True))
        return PaluLayer(context, keys, values)
