"""KIVI: keys per channel, values per token, the newest tokens dense."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from kvbench.methods.method import param
from kvbench.methods.quantiser import NEWEST_DENSE, Quantiser, check_bits
from kvbench.spec.budgets import Dial, widest_codes


@dataclass(frozen=True)
class Kivi(Quantiser):
    """Asymmetric codes: keys per channel, values per token (Liu et al., arXiv 2402.02750, Algorithm 1).

    ``bits`` sets both ``k_bits`` and ``v_bits``; 0 in either means ``bits``. The keys' residual fills up to
    ``residual`` tokens and is then quantised whole; a value is quantised when ``residual`` newer ones exist.
    Scales and zero points are in the cache's dtype.
    """

    name: ClassVar[str] = "kivi"
    title: ClassVar[str] = "KIVI"
    paper: ClassVar[str] = "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, arXiv 2402.02750"
    variants: ClassVar[tuple[str, ...]] = ("kivi:bits=4", "kivi:bits=3", "kivi:bits=2")
    dial: ClassVar[Dial | None] = widest_codes(4, 3, 2, groups=(64, 128), fine=replace(NEWEST_DENSE, step="group"))
    k_bits: int = param(0, "bits of keys; 0 is bits, 16 dense")
    v_bits: int = param(0, "bits of values; 0 is bits, 16 dense")
    group: int = param(32, "tokens (per channel) or channels (per token) that share a scale", least=0)
    symmetric: bool = False
    k_axis: str = "channel"
    residual: int = param(128, "newest tokens kept dense; a multiple of group", least=0)
    bits: int = param(2, "bits of keys and values: 2, 3, 4 or 8")

    def __post_init__(self) -> None:
        check_bits(bits=self.bits)
        super().__post_init__()

    @property
    def widths(self) -> tuple[int, int]:
        return self.k_bits or self.bits, self.v_bits or self.bits
