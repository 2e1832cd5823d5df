"""Four bits for every key and value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvbench.methods.base import param
from kvbench.methods.quantised import PerToken


@dataclass(frozen=True)
class Int4(PerToken):
    """Asymmetric int4 for each token in groups of 32 channels, keys and values alike."""

    name: ClassVar[str] = "int4"
    title: ClassVar[str] = "INT4 per token"
    paper: ClassVar[str] = "common practice (asymmetric min-max, groups of 32)"
    k_bits: int = param(4, "bits of keys: 2, 3, 4 or 8")
    v_bits: int = param(4, "bits of values: 2, 3, 4 or 8")
    group: int = param(32, "channels that share a scale; 0 is the whole head")
    symmetric: bool = param(False, "store no zero point")
