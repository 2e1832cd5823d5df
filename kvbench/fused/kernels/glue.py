"""Norms and gates of a decode step, a row at a time."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvbench.fused.kernels.waiting import launch_options, release, wait


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """``act(x)`` in float32; GELU with its tanh as a sigmoid, ``(1 + tanh u) / 2 = 1 / (1 + exp(-2u))``."""
    if ACTIVATION == "silu":
        return x / (1.0 + tl.exp(-x))
    return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


@triton.jit
def gate(gates, ups, ACTIVATION: tl.constexpr, TYPE: tl.constexpr):
    """``act(gate) * up`` of float32 tiles, each step rounded to ``TYPE``; the result is in ``TYPE``."""
    acted = activated(gates.to(TYPE).to(tl.float32), ACTIVATION).to(TYPE).to(tl.float32)
    return (acted * ups.to(TYPE).to(tl.float32)).to(TYPE)


@triton.jit
def _add_norm_kernel(stream, delta, weight, out, width, eps, BLOCK: tl.constexpr, HAS_DELTA: tl.constexpr, OVERLAPS: tl.constexpr):
    """One row of :func:`add_norm`."""
    if OVERLAPS:
        release()
    TYPE: tl.constexpr = stream.dtype.element_ty
    at = tl.arange(0, BLOCK)
    inside = at < width
    row = tl.program_id(0).to(tl.int64) * width
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if OVERLAPS:
        wait()
    x = tl.load(stream + row + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        rounded = (x + tl.load(delta + row + at, mask=inside, other=0.0).to(tl.float32)).to(TYPE)
        tl.store(stream + row + at, rounded, mask=inside)
        x = rounded.to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x) / width + eps)
    tl.store(out + row + at, (normed.to(TYPE).to(tl.float32) * scale).to(TYPE), mask=inside)


@triton.jit
def _gated_kernel(gate_up, out, width, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr, OVERLAPS: tl.constexpr):
    """One block of one row of :func:`gated`."""
    if OVERLAPS:
        release()
        wait()
    TYPE: tl.constexpr = gate_up.dtype.element_ty
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    row = tl.program_id(0).to(tl.int64)
    gates = tl.load(gate_up + row * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    ups = tl.load(gate_up + row * 2 * width + width + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, gate(gates, ups, ACTIVATION, TYPE), mask=inside)


def add_norm(stream: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """As :func:`kvbench.fused.plain_step.add_norm`; contiguous ``[B, H]``."""
    rows, width = stream.shape
    out = torch.empty_like(stream)
    block = triton.next_power_of_2(width)
    _add_norm_kernel[(rows,)](
        stream, stream if delta is None else delta, weight, out, width, eps,
        BLOCK=block, HAS_DELTA=delta is not None, num_warps=min(16, max(1, block // 256)), **launch_options(stream.device),
    )  # fmt: skip
    return out


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """As :func:`kvbench.fused.plain_step.gated`; contiguous ``[B, 2I]``."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    _gated_kernel[(rows, triton.cdiv(width, 1024))](
        gate_up, out, width, BLOCK=1024, ACTIVATION=activation, num_warps=4, **launch_options(gate_up.device)
    )
    return out
