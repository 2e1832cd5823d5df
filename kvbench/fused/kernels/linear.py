"""Products of a few rows with a weight matrix: as fast as the weights come from memory.

A program takes BLOCK_N outputs and the whole of K. For one row (:func:`_row_kernel`) each thread multiplies and sums
sixteen bytes of each weight row at a time, the next ones already on their way, and threads meet once, at the end. For
more rows (:func:`_rows_kernel`) rows are padded to a tile of the tensor cores. What comes before and after is fused:
the norm of the stream (one row), ``act(gate) * up`` and the sum with the stream. Sums are float32, and every
unfused module's result is rounded to the dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvbench.fused.kernels.glue import gate
from kvbench.fused.kernels.waiting import launch_options, release, wait

MOST_ROWS = 32
"""Rows up to which the kernels are worth trying."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Outputs and inputs that a program takes at a time, its warps, and the loads it keeps on their way."""

    block_n: int
    block_k: int
    warps: int
    stages: int = 1

    def __str__(self) -> str:
        return f"triton {self.block_n}x{self.block_k} w{self.warps}" + (f" s{self.stages}" if self.stages > 1 else "")


_WIDE = ((4, 1), (8, 1), (4, 2), (8, 2), (4, 4))
_NARROW = ((4, 2), (2, 4), (4, 4), (4, 8), (8, 4))
"""Outputs and warps for one row. Few outputs make few programs: then more warps keep enough bytes on their way."""
_SEVERAL = ((32, 256, 4, 3), (32, 128, 4, 5), (64, 128, 4, 5), (16, 256, 4, 5), (64, 128, 4, 3), (128, 128, 8, 4))
"""Outputs, inputs, warps and stages for several rows."""


def tiles(rows: int, outputs: int, dtype: torch.dtype, *, gated: bool) -> list[Tile]:
    """The tiles worth timing for this many rows and rows of weights; none where no kernel is worth it."""
    if rows == 1 and dtype in (torch.bfloat16, torch.float16, torch.float32):
        lane = 16 // dtype.itemsize  # a thread's load is sixteen bytes; a block that all warps span needs no exchange
        shapes = _WIDE if outputs > 8192 else _NARROW
        return [Tile(max(1, n // 2) if gated else n, 32 * lane * warps, warps) for n, warps in shapes]
    if 1 < rows <= MOST_ROWS and dtype in (torch.bfloat16, torch.float16):
        return [Tile(n // 2 if gated else n, k, warps, stages) for n, k, warps, stages in _SEVERAL]
    return []


@triton.jit
def _finish(
    sums, up_sums, bias, stream, out, at, columns, inside, n,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    """Bias, gate or sum with the stream, and store, of float32 sums of outputs ``columns`` that lie ``at`` in ``out``."""
    TYPE: tl.constexpr = out.dtype.element_ty
    if HAS_BIAS:
        sums += tl.load(bias + columns).to(tl.float32)
    if ACTIVATION != "":
        if HAS_BIAS:
            up_sums += tl.load(bias + n + columns).to(tl.float32)
        result = gate(sums, up_sums, ACTIVATION, TYPE)
    elif ADDS:
        before = tl.load(stream + at, mask=inside, other=0.0).to(tl.float32)
        result = (before + sums.to(TYPE).to(tl.float32)).to(TYPE)
    else:
        result = sums.to(TYPE)
    tl.store(out + at, result, mask=inside)


@triton.jit
def _row_kernel(
    x, norm_weight, weight, bias, stream, out, n, eps,
    K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    NORMS: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, ADDS: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """One row ``x [K]``; weight ``[n, K]``, or ``[2n, K]`` with gates first; bias ``[n]`` or ``[2n]``; out and stream ``[n]``."""
    if OVERLAPS:
        release()
    TYPE: tl.constexpr = out.dtype.element_ty
    GATED: tl.constexpr = ACTIVATION != ""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    held = tl.minimum(column, n - 1)  # the last program reads a row twice rather than none
    k = tl.arange(0, BLOCK_K)[None, :]
    tile = weight + held.to(tl.int64)[:, None] * K + k
    up_tile = tile + n * tl.full([], K, tl.int64)
    w = tl.load(tile, mask=k < K, other=0.0, cache_modifier=".cg")
    up_w = tl.load(up_tile, mask=k < K, other=0.0, cache_modifier=".cg") if GATED else w
    if OVERLAPS:
        wait()
    scale = 1.0
    if NORMS:
        squares = tl.zeros([1, BLOCK_K], tl.float32)
        for low in range(0, K, BLOCK_K):
            part = tl.load(x + low + k, mask=low + k < K, other=0.0).to(tl.float32)
            squares += part * part
        scale = tl.rsqrt(tl.sum(squares) / K + eps)
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up_sums = sums
    for low in range(0, K, BLOCK_K):
        ahead = low + BLOCK_K
        soon = tl.load(tile + ahead, mask=ahead + k < K, other=0.0, cache_modifier=".cg")
        up_soon = tl.load(up_tile + ahead, mask=ahead + k < K, other=0.0, cache_modifier=".cg") if GATED else soon
        inputs = tl.load(x + low + k, mask=low + k < K, other=0.0).to(tl.float32)
        if NORMS:
            weighs = tl.load(norm_weight + low + k, mask=low + k < K, other=0.0).to(tl.float32)
            inputs = ((inputs * scale).to(TYPE).to(tl.float32) * weighs).to(TYPE).to(tl.float32)
        sums += w.to(tl.float32) * inputs
        if GATED:
            up_sums += up_w.to(tl.float32) * inputs
        w, up_w = soon, up_soon
    _finish(
        tl.sum(sums, 1), tl.sum(up_sums, 1) if GATED else 0.0, bias, stream, out, column, held, column < n, n,
        HAS_BIAS, ACTIVATION, ADDS,
    )  # fmt: skip


@triton.jit
def _rows_kernel(
    x, weight, bias, stream, out, rows, n,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, ADDS: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """As :func:`_row_kernel` for x ``[rows, K]``, rows ≤ BLOCK_M; out and stream ``[rows, n]``. No norm."""
    if OVERLAPS:
        release()
        wait()
    GATED: tl.constexpr = ACTIVATION != ""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    held = tl.minimum(column, n - 1)
    row = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    inputs = x + row[:, None] * K + k[None, :]
    tile = weight + held.to(tl.int64)[None, :] * K + k[:, None]
    up_tile = tile + n * tl.full([], K, tl.int64)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up_sums = sums
    for low in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        within = low + k < K
        part = tl.load(inputs + low, mask=(row < rows)[:, None] & within[None, :], other=0.0)
        sums = tl.dot(part, tl.load(tile + low, mask=within[:, None], other=0.0), sums, input_precision="ieee")
        if GATED:
            up_sums = tl.dot(part, tl.load(up_tile + low, mask=within[:, None], other=0.0), up_sums, input_precision="ieee")
    at = row[:, None] * n + column[None, :]
    inside = (row < rows)[:, None] & (column < n)[None, :]
    _finish(sums, up_sums, bias, stream, out, at, held[None, :], inside, n, HAS_BIAS, ACTIVATION, ADDS)


def product(
    tile: Tile,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: tuple[Tensor, float] | None = None,
    activation: str = "",
    stream: Tensor | None = None,
) -> Tensor:
    """The product of contiguous ``x [rows, K]`` with contiguous ``weight``, and what is fused with it.

    Args:
        tile: One of :func:`tiles` for these rows.
        norm: The weight ``[K]`` and eps of a norm before it; one row only.
        activation: Of a gate after it, the weight being ``[2I, K]``; empty where there is none.
        stream: ``[rows, N]``, contiguous, that the product is added to in place; it is then what is returned.
    """
    rows, K = x.shape
    n = weight.shape[0] // 2 if activation else weight.shape[0]
    out = torch.empty(rows, n, dtype=x.dtype, device=x.device) if stream is None else stream
    grid = (triton.cdiv(n, tile.block_n),)
    given = weight if bias is None else bias  # a pointer is asked for, whether or not it is read
    common = {
        "K": K, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "HAS_BIAS": bias is not None, "ACTIVATION": activation,
        "ADDS": stream is not None, "num_warps": tile.warps, **launch_options(x.device),
    }  # fmt: skip
    if rows == 1:
        norm_weight, eps = norm or (x, 0.0)
        _row_kernel[grid](x, norm_weight, weight, given, out, out, n, eps, NORMS=norm is not None, **common)
    else:
        block_m = max(16, triton.next_power_of_2(rows))
        _rows_kernel[grid](x, weight, given, out, out, rows, n, BLOCK_M=block_m, STAGES=tile.stages, **common)
    return out
