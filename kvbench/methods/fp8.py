"""Eight-bit floating point for every key and value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.methods.method import param
from kvbench.methods.quantiser import DENSE, NEWEST_DENSE, Quantiser
from kvbench.spec.budgets import Dial

if TYPE_CHECKING:
    from kvbench.caches.layer import LayerContext
    from kvbench.caches.packing import Scheme


@dataclass(frozen=True)
class FP8(Quantiser):
    """OCP FP8 e4m3 with a scale for each token and head, the largest number of which becomes 448."""

    name: ClassVar[str] = "fp8"
    title: ClassVar[str] = "FP8 (e4m3) per token"
    paper: ClassVar[str] = "FP8 Formats for Deep Learning, arXiv 2209.05433; per-token scales as in common serving engines"
    dial: ClassVar[Dial | None] = NEWEST_DENSE
    k_bits: int = param(8, "bits of keys: 8, or 16 (dense)", among=(8, DENSE))
    v_bits: int = param(8, "bits of values: 8, or 16 (dense)", among=(8, DENSE))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.symmetric:
            raise ValueError("symmetric=false; it must be true: e4m3 codes have a sign and no zero point")

    def _scheme(self, bits: int, axis: str, context: LayerContext) -> Scheme | None:
        from dataclasses import replace

        scheme = super()._scheme(bits, axis, context)
        return None if scheme is None else replace(scheme, floating=True)
