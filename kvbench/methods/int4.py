"""Four bits for every key and value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvbench.methods.method import param
from kvbench.methods.quantiser import NEWEST_DENSE, Quantiser
from kvbench.spec.budgets import Dial, widest_codes


@dataclass(frozen=True)
class Int4(Quantiser):
    """Asymmetric int4 for each token in groups of 32 channels, keys and values alike."""

    name: ClassVar[str] = "int4"
    title: ClassVar[str] = "INT4 per token"
    paper: ClassVar[str] = "common practice (asymmetric min-max, groups of 32)"
    dial: ClassVar[Dial | None] = widest_codes(4, 3, 2, groups=(64, 0), fine=NEWEST_DENSE)
    k_bits: int = param(4, "bits of keys: 2, 3, 4, 8, or 16 (dense)")
    v_bits: int = param(4, "bits of values: 2, 3, 4, 8, or 16 (dense)")
    group: int = param(32, "channels (or tokens, per channel) that share a scale; 0 is the whole head")
    symmetric: bool = param(False, "store no zero point")
