"""Four bits for every key and value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvbench.methods.quantiser import NEWEST_DENSE, Quantiser
from kvbench.spec.budgets import Dial, widest_codes


@dataclass(frozen=True)
class Int4(Quantiser):
    """Asymmetric int4 for each token in groups of 32 channels, keys and values alike."""

    name: ClassVar[str] = "int4"
    title: ClassVar[str] = "INT4 per token"
    paper: ClassVar[str] = "common practice (asymmetric min-max, groups of 32)"
    dial: ClassVar[Dial | None] = widest_codes(4, 3, 2, groups=(64, 0), fine=NEWEST_DENSE)
    k_bits: int = 4
    v_bits: int = 4
    group: int = 32
    symmetric: bool = False
