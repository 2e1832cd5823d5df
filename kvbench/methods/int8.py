"""Eight bits for every key and value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvbench.methods.method import param
from kvbench.methods.quantiser import Quantiser


@dataclass(frozen=True)
class Int8(Quantiser):
    """Absolute-maximum int8 for each token and head, keys and values alike."""

    name: ClassVar[str] = "int8"
    title: ClassVar[str] = "INT8 per token"
    paper: ClassVar[str] = "common practice (symmetric absmax)"
    k_bits: int = param(8, "bits of keys: 2, 3, 4, 8, or 16 (dense)")
    v_bits: int = param(8, "bits of values: 2, 3, 4, 8, or 16 (dense)")
    group: int = param(0, "channels (or tokens, per channel) that share a scale; 0 is the whole head")
    symmetric: bool = param(True, "store no zero point")
