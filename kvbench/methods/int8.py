"""Eight bits for every key and value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvbench.methods.quantiser import Quantiser


@dataclass(frozen=True)
class Int8(Quantiser):
    """Absolute-maximum int8 for each token and head, keys and values alike."""

    name: ClassVar[str] = "int8"
    title: ClassVar[str] = "INT8 per token"
    paper: ClassVar[str] = "common practice (symmetric absmax)"
    k_bits: int = 8
    v_bits: int = 8
    group: int = 0
    symmetric: bool = True
