"""KIVI: keys per channel, values per token, the newest tokens dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.methods.base import Method, must_divide, param
from kvbench.methods.quantised import check_bits, check_packing, whole_or

if TYPE_CHECKING:
    from kvbench.caches.layer import LayerCache, LayerContext
    from kvbench.models import Shape


@dataclass(frozen=True)
class Kivi(Method):
    """Asymmetric quantisation, keys per channel and values per token (Liu et al., arXiv 2402.02750, Algorithm 1).

    ``bits`` sets both ``k_bits`` and ``v_bits``; 0 in either means ``bits``. The keys' residual fills up to
    ``residual`` tokens and is then quantised whole; a value is quantised when ``residual`` newer ones exist.
    Scales and zero points are in the cache's dtype.
    """

    name: ClassVar[str] = "kivi"
    title: ClassVar[str] = "KIVI"
    family: ClassVar[str] = "quantisation"
    paper: ClassVar[str] = "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, arXiv 2402.02750"
    variants: ClassVar[tuple[str, ...]] = ("kivi:bits=4", "kivi:bits=3", "kivi:bits=2")
    bits: int = param(2, "bits of keys and values: 2, 3, 4 or 8")
    k_bits: int = param(0, "bits of keys; 0 is bits")
    v_bits: int = param(0, "bits of values; 0 is bits")
    group: int = param(32, "tokens (keys) or channels (values) that share a scale")
    residual: int = param(128, "newest tokens kept dense; a multiple of group")

    def __post_init__(self) -> None:
        check_bits(bits=self.bits, k_bits=self.k_bits or self.bits, v_bits=self.v_bits or self.bits)
        if self.group < 1:
            raise ValueError(f"group={self.group}; it must be at least 1")
        if self.residual < self.group or self.residual % self.group:
            near = max(1, round(self.residual / self.group)) * self.group
            raise ValueError(f"residual={self.residual}; it must be a multiple of group={self.group}, for example {near}")

    def check(self, shape: Shape) -> None:
        must_divide("group", whole_or(self.group, shape.head_dim), shape.head_dim, "head size")
        check_packing(shape.head_dim, k_bits=self.k_bits or self.bits, v_bits=self.v_bits or self.bits)

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.packing import Scheme
        from kvbench.caches.quantised import KiviLayer

        keys = Scheme(self.k_bits or self.bits, self.group, axis="channel")
        values = Scheme(self.v_bits or self.bits, whole_or(self.group, context.head_dim))
        return KiviLayer(context, keys, values, self.residual)
