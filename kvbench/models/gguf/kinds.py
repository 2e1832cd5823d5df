"""ggml types: how numbers are packed in a GGUF file, and which of them can be read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

F32, F16, BF16 = 0, 1, 30
"""Types that are numbers, not blocks of codes."""
KEPT: Mapping[int, str] = {F32: "float32", F16: "float16", BF16: "bfloat16"}
"""What stays as it is; everything else is decoded to float32."""


@lru_cache(maxsize=1)
def block_sizes() -> Mapping[int, tuple[int, int]]:
    """ggml type → elements of a block and its bytes."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}


def name_of(kind: int) -> str:
    """The format's own name of a type, such as Q4_K."""
    from gguf.constants import GGMLQuantizationType

    return str(GGMLQuantizationType(kind).name)


@lru_cache
def can_decode(kind: int) -> bool:
    """Whether numbers of this type can be read: plain ones, and what the ``gguf`` package decodes."""
    if kind in KEPT:
        return True
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        dequantize(np.zeros((1, block_sizes()[kind][1]), np.uint8), GGMLQuantizationType(kind))
    except (NotImplementedError, ValueError):
        return False
    return True
