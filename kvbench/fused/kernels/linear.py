"""Products of a few rows with a weight matrix: as fast as the weights come from memory.

One row (:func:`_row_kernel`): a program takes BLOCK_N outputs and the whole of K. Each thread multiplies and sums sixteen bytes of
each weight row at a time, the next ones already on their way, and threads meet once, at the end.

Several rows (:func:`_rows_kernel`): they are padded to a tile of the tensor cores, whose other operand is the weight itself. Blocks of
the weight are dealt to as many programs as the device holds at once, each the same number, wherever tiles of outputs end (stream-K,
Osama et al. 2023): whole tiles a program would leave a part of the device idle at the end, and reading takes as long as the slowest.

What comes before and after is fused: the norm of the stream (one row), ``act(gate) * up`` and the sum with the stream. Sums are
float32, and every unfused module's result is rounded to the dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvbench.fused.kernels.glue import gate
from kvbench.fused.kernels.waiting import launch_options, release, wait
from kvbench.fused.scratch import multiprocessors, scratch

MOST_ROWS = 64
"""Rows up to which the kernels are worth trying."""
_AHEAD = 5 << 20
"""Bytes of a weight that are fetched while the kernel before still runs. More delays what is read first."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and columns of the weight that a program takes at a time, its warps, and the loads it keeps on their way.

    Attributes:
        programs: On a multiprocessor, which share the whole weight equally; 0 where each takes one tile.
    """

    block_n: int
    block_k: int
    warps: int
    stages: int = 1
    programs: int = 0

    def __str__(self) -> str:
        more = (f" s{self.stages}" if self.stages > 1 else "") + (f" p{self.programs}" if self.programs else "")
        return f"triton {self.block_n}x{self.block_k} w{self.warps}{more}"


_WIDE = ((4, 1), (8, 1), (4, 2), (8, 2), (4, 4))
_NARROW = ((4, 2), (2, 4), (4, 4), (4, 8), (8, 4))
"""Outputs and warps for one row. Few outputs make few programs: then more warps keep enough bytes on their way."""
_SEVERAL: tuple[tuple[int, int, int, int, int], ...] = (
    (128, 128, 4, 4, 1), (64, 256, 4, 4, 1), (64, 128, 4, 8, 1), (64, 128, 4, 3, 3), (64, 128, 4, 3, 0), (32, 256, 4, 6, 0),
)  # fmt: skip
"""Of several rows, as :class:`Tile` has them."""


def tiles(rows: int, outputs: int, dtype: torch.dtype, *, gated: bool) -> list[Tile]:
    """The tiles worth timing for this many rows and rows of weights; none where no kernel is worth it."""
    if rows == 1 and dtype in (torch.bfloat16, torch.float16, torch.float32):
        lane = 16 // dtype.itemsize  # a thread's load is sixteen bytes; a block that all warps span needs no exchange
        shapes = _WIDE if outputs > 8192 else _NARROW
        return [Tile(max(1, n // 2) if gated else n, 32 * lane * warps, warps) for n, warps in shapes]
    if 1 < rows <= MOST_ROWS and dtype in (torch.bfloat16, torch.float16):
        return [Tile(*shape) for shape in _SEVERAL]
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
def _fetch(rows, low, blocks, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Bring the first ``blocks`` of rows, from column ``low`` on, into the second-level cache; nobody waits for them."""
    for block in range(low, tl.minimum(low + blocks * BLOCK_K, K), BLOCK_K):
        size = tl.minimum(BLOCK_K, K - block) * (rows.dtype.element_ty.primitive_bitwidth // 8)
        tl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;", "=r,l,r", [(rows + block).to(tl.int64), size.to(tl.int32)],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def _gathered(sums, place, tile, total, programs, BLOCKS: tl.constexpr, SIZE: tl.constexpr):
    """The sum of all programs' parts of a tile, in their order; four are on their way at a time."""
    first, last = _holder(tile * BLOCKS, total, programs), _holder(tile * BLOCKS + BLOCKS - 1, total, programs)
    gathered = tl.zeros(place.shape, tl.float32)
    for low in range(first, last + 1, 4):
        parts = ()
        for i in tl.static_range(4):
            one = tl.minimum(low + i, last)
            slot = one * 2 + (one * total // programs // BLOCKS != tile).to(tl.int32)
            here = (low + i <= last) & (place >= 0)
            parts = parts + (tl.load(sums + slot * SIZE + place, mask=here, other=0.0, cache_modifier=".cg"),)
        for i in tl.static_range(4):
            gathered += parts[i]
    return gathered


@triton.jit(do_not_specialize=["ahead"])
def _rows_kernel(
    x, weight, bias, stream, out, sums, arrivals, rows, n, ahead,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, ADDS: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """As :func:`_row_kernel` for x ``[rows, K]``, rows ≤ BLOCK_M; out and stream ``[rows, n]``. No norm.

    Weights are the product's rows, and x its columns. All blocks of all tiles are dealt to the programs in equal runs, so a tile's sum may
    be several programs': each leaves its own in ``sums`` ``[programs, 2, BLOCK_N, BLOCK_M]``, and the last to arrive, by ``arrivals``
    ``[tiles]`` (zero before and after), adds them up in the programs' order.
    """
    TYPE: tl.constexpr = out.dtype.element_ty
    BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    GATED: tl.constexpr = ACTIVATION != ""
    OWN: tl.constexpr = BLOCK_N // 2 if GATED else BLOCK_N  # outputs of a tile
    program, programs = tl.program_id(0), tl.num_programs(0)
    total = tl.cdiv(n, OWN) * BLOCKS
    begin, end = program * total // programs, (program + 1) * total // programs
    r = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    m = tl.arange(0, BLOCK_M)
    if OVERLAPS:
        release()
        if K * TYPE.primitive_bitwidth % 128 == 0:  # whole sixteens of bytes
            soon = weight + _weight_row(begin // BLOCKS * OWN, n, BLOCK_N, GATED).to(tl.int64) * K
            _fetch(soon, begin % BLOCKS * BLOCK_K, ahead, K, BLOCK_K)
        wait()
    inputs = x + tl.minimum(m, rows - 1)[None, :] * K + k[:, None]
    for tile in range(begin // BLOCKS, tl.cdiv(end, BLOCKS)):
        low = tl.maximum(begin - tile * BLOCKS, 0)
        high = tl.minimum(end - tile * BLOCKS, BLOCKS)
        held = weight + _weight_row(tile * OWN, n, BLOCK_N, GATED).to(tl.int64)[:, None] * K + k[None, :]
        own = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for block in tl.range(low * BLOCK_K, high * BLOCK_K, BLOCK_K, num_stages=STAGES):
            if K % BLOCK_K == 0:
                w = tl.load(held + block, cache_modifier=".cg")
                part = tl.load(inputs + block)
            else:
                within = block + k < K
                w = tl.load(held + block, mask=within[None, :], other=0.0, cache_modifier=".cg")
                part = tl.load(inputs + block, mask=within[:, None], other=0.0)
            own = tl.dot(w, part, own, input_precision="ieee")
        is_last = True
        if high - low < BLOCKS:
            place = r[:, None] * BLOCK_M + m[None, :]
            slot = program * 2 + (begin // BLOCKS != tile).to(tl.int32)
            tl.store(sums + slot * (BLOCK_N * BLOCK_M) + place, own)
            tl.debug_barrier()
            before = tl.atomic_add(arrivals + tile, 1, sem="acq_rel")
            is_last = before == _holder(tile * BLOCKS + BLOCKS - 1, total, programs) - _holder(tile * BLOCKS, total, programs)
            if is_last:
                tl.store(arrivals + tile, 0)
                own = _gathered(sums, place, tile, total, programs, BLOCKS, BLOCK_N * BLOCK_M)
        if is_last:
            column = tile * OWN + tl.arange(0, OWN)
            at = m[None, :] * n + column[:, None]
            inside = (m < rows)[None, :] & (column < n)[:, None]
            gates, ups = own, own
            if GATED:
                gates, ups = tl.split(tl.permute(tl.reshape(own, [OWN, 2, BLOCK_M]), [0, 2, 1]))
            _finish(gates, ups, bias, stream, out, at, tl.minimum(column, n - 1)[:, None], inside, n, HAS_BIAS, ACTIVATION, ADDS)


@triton.jit
def _weight_row(start, n, BLOCK_N: tl.constexpr, GATED: tl.constexpr):
    """Rows of the weight that a tile from output ``start`` on takes, gates and ups in turn where there are both."""
    r = tl.arange(0, BLOCK_N)
    if GATED:
        return tl.minimum(start + r // 2, n - 1) + r % 2 * n
    return tl.minimum(start + r, n - 1)


@triton.jit
def _holder(block, total, programs):
    """The program to whom a block is dealt."""
    return ((block + 1) * programs - 1) // total


@dataclass(frozen=True, slots=True)
class Room:
    """Where programs leave their parts of the sums of several rows; it must outlive a graph that holds the product."""

    programs: int
    block_m: int
    sums: Tensor
    arrivals: Tensor


def _deal(tile: Tile, weight: Tensor) -> tuple[int, int]:
    """Programs, and blocks that are dealt to them."""
    outputs, K = weight.shape
    tiles = triton.cdiv(outputs, tile.block_n)
    blocks = tiles * triton.cdiv(K, tile.block_k)
    return min(tile.programs * multiprocessors(weight.device) or tiles, blocks), blocks


def can_deal(tile: Tile, rows: int, weight: Tensor) -> bool:
    """Whether the kernel's numbers of blocks keep to 32 bits; those of a head for many words of a wide model may not."""
    programs, blocks = _deal(tile, weight)
    return rows == 1 or (programs + 1) * blocks < 2**31


def room_for(tile: Tile, rows: int, weight: Tensor) -> Room:
    """What :func:`product` needs for several rows; shared by all products of a device."""
    block_m = max(16, triton.next_power_of_2(rows))
    programs, _ = _deal(tile, weight)
    sums = scratch(weight.device, "sums", programs * 2 * tile.block_n * block_m)
    arrivals = scratch(weight.device, "arrivals", triton.cdiv(weight.shape[0], tile.block_n), torch.int32)
    return Room(programs, block_m, sums, arrivals)


def product(
    tile: Tile,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: tuple[Tensor, float] | None = None,
    activation: str = "",
    stream: Tensor | None = None,
    room: Room | None = None,
) -> Tensor:
    """The product of contiguous ``x [rows, K]`` with contiguous ``weight``, and what is fused with it.

    Args:
        tile: One of :func:`tiles` for these rows.
        norm: The weight ``[K]`` and eps of a norm before it; one row only.
        activation: Of a gate after it, the weight being ``[2I, K]``; empty where there is none.
        stream: ``[rows, N]``, contiguous, that the product is added to in place; it is then what is returned.
        room: Of several rows, from :func:`room_for`; whoever captures the product holds it.
    """
    rows, K = x.shape
    n = weight.shape[0] // 2 if activation else weight.shape[0]
    out = torch.empty(rows, n, dtype=x.dtype, device=x.device) if stream is None else stream
    given = weight if bias is None else bias  # a pointer is asked for, whether or not it is read
    common = {
        "K": K, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "HAS_BIAS": bias is not None, "ACTIVATION": activation,
        "ADDS": stream is not None, "num_warps": tile.warps, **launch_options(x.device),
    }  # fmt: skip
    if rows == 1:
        norm_weight, eps = norm or (x, 0.0)
        _row_kernel[(triton.cdiv(n, tile.block_n),)](x, norm_weight, weight, given, out, out, n, eps, NORMS=norm is not None, **common)
        return out
    room = room or room_for(tile, rows, weight)
    ahead = _AHEAD // (room.programs * tile.block_n * tile.block_k * x.element_size())
    _rows_kernel[(room.programs,)](
        x, weight, given, out, out, room.sums, room.arrivals, rows, n, ahead, BLOCK_M=room.block_m, STAGES=tile.stages,
        **common,
    )  # fmt: skip
    return out
