"""Numbers of GGUF tensors, decoded by the format's own library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.models.gguf.kinds import BF16, F16, F32, block_sizes
from kvbench.models.gguf.wanted import Part

if TYPE_CHECKING:
    import numpy as np

STEP = 1 << 24
"""Numbers decoded at a time: 64 MB of float32."""


def blocks_of(path: Path, part: Part) -> Iterator[np.ndarray[Any, Any]]:
    """The numbers of one weight, some rows at a time: float32, float16, or bfloat16 as its 16 bits."""
    import numpy as np

    tensor = part.source
    columns, count = tensor.shape[-1], 1
    for dimension in part.shape[:-1] if len(part.shape) > 1 else ():
        count *= dimension
    block, each = block_sizes()[tensor.kind]
    width = columns // block * each
    start = tensor.offset + (part.expert or 0) * count * width
    stored = np.memmap(path, np.uint8, "r", start, (count, width))
    step = count if part.heads else max(1, STEP // columns)
    for first in range(0, count, step):
        rows = _decode(stored[first : first + step], tensor.kind)
        yield _halves(rows, part) - np.float32(part.shift) if part.shift else _halves(rows, part)


def _decode(stored: np.ndarray[Any, Any], kind: int) -> np.ndarray[Any, Any]:
    """Rows of bytes → rows of numbers."""
    import numpy as np

    plain = {F32: np.float32, F16: np.float16, BF16: np.uint16}
    if kind in plain:
        return np.ascontiguousarray(stored).view(plain[kind])
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    numbers: np.ndarray[Any, Any] = dequantize(np.ascontiguousarray(stored), GGMLQuantizationType(kind))
    return numbers.astype(np.float32, copy=False)


def _halves(rows: np.ndarray[Any, Any], part: Part) -> np.ndarray[Any, Any]:
    """Undo llama.cpp's row order: it interleaves the two halves of each head that RoPE turns into each other."""
    import numpy as np

    if not part.heads:
        return rows
    values = rows.reshape(part.shape[0], -1)
    pairs = values.reshape(part.heads, -1, 2, values.shape[-1])  # [H, D/2, 2, hidden]
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)
