"""The window of newest tokens: a step's token stored, its leaver's values coded, keys flushed, and the window read.

See :mod:`kvbench.fused.window` for what lies where.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvbench.fused.kernels.dense import absorb
from kvbench.fused.kernels.waiting import follow, release, wait
from kvbench.fused.kernels.write import _put_steps, _put_values, _quantised, _turned


@triton.jit
def append(
    q, k, v, cos, sin, q_weight, k_weight, q_out, keys, ring, values, v_scale, v_zero, first, held, counter,
    eps, q_row, k_row, v_row, rope_row, pairs, v_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, R: tl.constexpr,
    ROPE: tl.constexpr, NORM: tl.constexpr, T: tl.constexpr, SIZE: tl.constexpr,
    V_BITS: tl.constexpr, V_GROUPS: tl.constexpr, V_SYMMETRIC: tl.constexpr, V_PAIRED: tl.constexpr, V_WORD: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """As :func:`kvbench.fused.kernels.write.append`, into a window of ``SIZE`` tokens.

    keys ``[2, pairs, 2 SIZE, D]``, ring ``[pairs, 2 SIZE, DV]``; values, v_scale, v_zero, first: the region of codes.
    """
    if OVERLAPS:
        release()
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, D)
    own = tl.maximum(head - HEADS, 0) % KV_HEADS
    pair = row * KV_HEADS + own
    token = tl.load(held + pair) + tl.load(counter)
    place = pair * 2 * SIZE + token % (2 * SIZE)
    if OVERLAPS:
        wait()
    if head < HEADS:
        x = _turned(q + row * q_row + head * D, q_weight, cos + row * rope_row, sin + row * rope_row, eps, D, R, ROPE, NORM)
        tl.store(q_out + (row * HEADS + head) * D + d, x)
    elif head < HEADS + KV_HEADS:
        x = _turned(k + row * k_row + own * D, k_weight, cos + row * rope_row, sin + row * rope_row, eps, D, R, ROPE, NORM)
        tl.store(keys + (pairs * 2 * SIZE + place) * D + d, x)
    else:
        e = tl.arange(0, DV)
        leaver = token - SIZE
        if leaver >= 0:
            left = tl.load(ring + (pair * 2 * SIZE + leaver % (2 * SIZE)) * DV + e)
            slot = tl.load(first + pair) + leaver
            _put_values(left, values, v_scale, v_zero, slot, v_stride, DV, T, V_BITS, V_GROUPS, V_SYMMETRIC, V_PAIRED, V_WORD)
        tl.store(ring + place * DV + e, tl.load(v + row * v_row + own * DV + e))


@triton.jit
def flush(
    keys, codes, k_scale, k_zero, first, held, counter, pairs,
    D: tl.constexpr, SIZE: tl.constexpr, SPAN: tl.constexpr,
    BITS: tl.constexpr, SYMMETRIC: tl.constexpr, PAIRED: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    """Code the ``program_id(1)``-th ``SPAN`` of the newest ``SIZE`` keys of pair ``program_id(0)``, a scale a channel."""
    pair = tl.program_id(0).to(tl.int64)
    token = tl.load(held + pair) + tl.load(counter) - SIZE + tl.program_id(1) * SPAN
    t = tl.arange(0, SPAN)
    d = tl.arange(0, D)
    type = keys.dtype.element_ty
    place = (pair * 2 * SIZE + (token + t) % (2 * SIZE))[:, None] * D + d[None, :]
    x = tl.load(keys + pairs * 2 * SIZE * D + place).to(tl.float32)
    codes_of, scale, zero = _quantised(tl.reshape(tl.trans(x), [D * SPAN]), D, D * SPAN, BITS, SYMMETRIC, type)
    code = tl.trans(tl.reshape(codes_of, [D, SPAN]))
    base = (1 << (BITS - 1)) if SYMMETRIC else 0
    read = (code - base).to(tl.float32) * scale.to(tl.float32)[None, :] + zero.to(tl.float32)[None, :]
    tl.store(keys + place, read.to(type))
    P: tl.constexpr = WORD // BITS
    dealt = tl.reshape(code, [SPAN, P, D // P]) << (tl.arange(0, P) * BITS)[None, :, None]
    slot = tl.load(first + pair) + token
    w = tl.arange(0, D // P)
    tl.store(codes + (slot + t)[:, None] * (D // P) + w[None, :], tl.sum(dealt, 1).to(codes.dtype.element_ty))
    at = (slot // SPAN) * D + d
    _put_steps(k_scale, k_zero, at, scale, zero, SYMMETRIC, PAIRED)


@triton.jit(do_not_specialize=["slots", "base"])
def read(
    q, keys, ring, held, counter, part, stat, scaling, slots, base, pairs,
    GROUP: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, T: tl.constexpr, SIZE: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """The window of pair ``program_id(0)`` as one part of N columns, as :func:`kvbench.fused.kernels.read.split` gives it."""
    follow(OVERLAPS)
    pair = tl.program_id(0).to(tl.int64)
    n = tl.load(held + pair) + tl.load(counter) + 1
    begin = tl.maximum(n - SIZE, 0)
    flushed = (n - 1) // SIZE * SIZE
    t = tl.arange(0, T)
    g = tl.arange(0, ROWS)
    d = tl.arange(0, D)
    e = tl.arange(0, DV)
    queries = tl.load(q + (pair * GROUP + g)[:, None] * D + d[None, :], mask=(g < GROUP)[:, None], other=0.0)
    best = tl.full([ROWS], -float("inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, DV], tl.float32)
    for low in range(begin, n, T):
        token = low + t
        inside = token < n
        place = pair * 2 * SIZE + token % (2 * SIZE)
        dense = tl.where(token >= flushed, pairs * 2 * SIZE, 0)
        k = tl.load(keys + (dense + place)[None, :] * D + d[:, None], mask=inside[None, :], other=0.0)
        v = tl.load(ring + place[:, None] * DV + e[None, :], mask=inside[:, None], other=0.0)
        best, mass, out = absorb(queries, k, v, inside, scaling, best, mass, out)
    place = pair * slots + base
    tl.store(part + (place * N + g)[:, None] * DV + e[None, :], out, mask=(g < N)[:, None])
    tl.store(stat + place * 2 * N + g, best, mask=g < N)
    tl.store(stat + (place * 2 + 1) * N + g, mass, mask=g < N)
