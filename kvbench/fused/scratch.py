"""What the kernels of a device share: its size, and buffers that all layers use in turn."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=8)
def multiprocessors(device: torch.device) -> int:
    """1 where there are none to fill."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


_buffers: dict[tuple[torch.device, str], Tensor] = {}


def scratch(device: torch.device, name: str, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A buffer of at least ``size`` numbers, zero at first; a larger one takes its place where it is too small.

    A graph that was captured with a smaller one keeps that alive itself. What is captured must not be the first to ask for a size:
    the zeros would be written at every replay.
    """
    key = (device, name)
    held = _buffers.get(key)
    if held is None or held.numel() < size:
        held = _buffers[key] = torch.zeros(size, dtype=dtype, device=device)
    return held
