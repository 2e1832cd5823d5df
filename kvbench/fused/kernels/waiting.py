"""Kernels that start while the one before them ends (programmatic dependent launch, compute capability 9 and newer).

``release`` lets the next kernel start. Before ``wait`` a kernel may read only what no kernel that overlaps with others writes: weights,
and what a step finds when it begins (lengths, counters, earlier tokens), since a step begins and ends with PyTorch's own kernels.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents as release
    from triton.language.extra.cuda import gdc_wait as wait

    AVAILABLE = True
except ImportError:  # before Triton 3.4

    @triton.jit
    def release():
        """Nothing: the next kernel starts when this one has ended."""

    @triton.jit
    def wait():
        """Nothing: the kernel before has ended."""

    AVAILABLE = False

__all__ = ["AVAILABLE", "follow", "launch_options", "release", "wait"]


@triton.jit
def follow(OVERLAPS: tl.constexpr):
    """Let the next kernel start, and wait for the one before."""
    if OVERLAPS:
        release()
        wait()


def launch_options(device: torch.device) -> dict[str, Any]:
    """What a kernel that waits is launched with on ``device``; ``KVBENCH_PDL=0`` in the environment switches overlap off."""
    overlaps = AVAILABLE and device.type == "cuda" and os.environ.get("KVBENCH_PDL", "1") != "0"
    if overlaps and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0):
        return {"OVERLAPS": True, "launch_pdl": True}
    return {"OVERLAPS": False}
