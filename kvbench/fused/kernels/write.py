"""A step's own token: norm and rotary embedding of queries and keys, and keys and values stored as the method stores them.

One program a row and head: queries, then keys, then values. Rounding is that of the plain path: each operation of Hugging Face's
models rounds to their dtype, and codes are chosen as :func:`kvbench.caches.packing.quantise` chooses them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvbench.fused.kernels.waiting import release, wait


@triton.jit
def _normed(x, weight, square, eps, D: tl.constexpr):
    type = x.dtype
    return (weight.to(tl.float32) * (x.to(tl.float32) * tl.rsqrt(square / D + eps)).to(type).to(tl.float32)).to(type)


@triton.jit
def _turned(x, weight, cos, sin, eps, D: tl.constexpr, R: tl.constexpr, ROPE: tl.constexpr, NORM: tl.constexpr):
    """One head's ``[D]``: RMS norm, then the rotary embedding of its first R channels."""
    d = tl.arange(0, D)
    type = x.dtype.element_ty
    own = tl.load(x + d)
    partner = tl.where(d < R // 2, d + R // 2, tl.where(d < R, d - R // 2, d))
    other = tl.load(x + partner)
    if NORM:
        square = tl.sum(own.to(tl.float32) * own.to(tl.float32), 0)
        own = _normed(own, tl.load(weight + d), square, eps, D)
        other = _normed(other, tl.load(weight + partner), square, eps, D)
    if ROPE:
        c = tl.load(cos + d, mask=d < R, other=1.0).to(tl.float32)
        s = tl.load(sin + d, mask=d < R, other=0.0).to(tl.float32)
        signed = tl.where(d < R // 2, -other.to(tl.float32), other.to(tl.float32))
        own = ((own.to(tl.float32) * c).to(type).to(tl.float32) + (signed * s).to(type).to(tl.float32)).to(type)
    return own


@triton.jit
def _whole(x):
    """To the nearest whole number, ties to even, for |x| < 2²²."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _quantised(x, GROUPS: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, SYMMETRIC: tl.constexpr, TYPE: tl.constexpr):
    """Codes ``[WIDTH]`` (int32) of ``x`` ``[WIDTH]``, scales and zero points ``[GROUPS]``."""
    grouped = tl.reshape(x.to(tl.float32), [GROUPS, WIDTH // GROUPS])
    LEVELS: tl.constexpr = (1 << BITS) - 1
    if SYMMETRIC:
        scale = tl.div_rn(tl.max(tl.abs(grouped), 1), tl.full([GROUPS], (1 << (BITS - 1)) - 1, tl.float32)).to(TYPE)
        zero = tl.zeros([GROUPS], TYPE)
        base = 1 << (BITS - 1)
        shifted = grouped
    else:
        zero = tl.min(grouped, 1).to(TYPE)
        scale = tl.div_rn(tl.max(grouped, 1) - zero.to(tl.float32), tl.full([GROUPS], LEVELS, tl.float32)).to(TYPE)
        base = 0
        shifted = grouped - zero.to(tl.float32)[:, None]
    step = scale.to(tl.float32)
    step = tl.where(step == 0.0, 1.0, step)
    divisor = tl.broadcast_to(step[:, None], [GROUPS, WIDTH // GROUPS])
    codes = _whole(tl.div_rn(shifted, divisor) + base)
    codes = tl.minimum(tl.maximum(codes, 0.0), LEVELS).to(tl.int32)
    return tl.reshape(codes, [WIDTH]), scale, zero


@triton.jit
def _put_steps(scales, zeros, at, scale, zero, SYMMETRIC: tl.constexpr, PAIRED: tl.constexpr):
    if PAIRED:
        low = scale.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        tl.store(scales + at, low | (zero.to(tl.int16, bitcast=True).to(tl.int32) << 16))
    else:
        tl.store(scales + at, scale)
        if not SYMMETRIC:
            tl.store(zeros + at, zero)


@triton.jit
def _put_values(
    y, values, v_scale, v_zero, slot, v_stride, DV: tl.constexpr, T: tl.constexpr,
    BITS: tl.constexpr, GROUPS: tl.constexpr, SYMMETRIC: tl.constexpr, PAIRED: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    """Values ``[DV]`` of one token as codes: of each channel's word only the token's own bits change."""
    P: tl.constexpr = WORD // BITS
    X: tl.constexpr = T // P
    codes, scale, zero = _quantised(y, GROUPS, DV, BITS, SYMMETRIC, v_zero.dtype.element_ty)
    within = slot % T
    place = values + (slot - within) * (DV // P) + tl.arange(0, DV) * X + within % X
    shift = ((within // X) * BITS).to(tl.int32)
    others = tl.load(place).to(tl.int32) & ~(((1 << BITS) - 1) << shift)
    tl.store(place, (others | (codes << shift)).to(values.dtype.element_ty))
    _put_steps(v_scale, v_zero, tl.arange(0, GROUPS) * v_stride + slot, scale, zero, SYMMETRIC, PAIRED)


@triton.jit
def append(
    q, k, v, cos, sin, q_weight, k_weight, q_out, keys, k_scale, k_zero, values, v_scale, v_zero, first, held, counter,
    eps, q_row, k_row, v_row, rope_row, k_stride, v_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DV_WIDE: tl.constexpr, R: tl.constexpr,
    ROPE: tl.constexpr, NORM: tl.constexpr, T: tl.constexpr,
    K_BITS: tl.constexpr, K_GROUPS: tl.constexpr, K_SYMMETRIC: tl.constexpr, K_PAIRED: tl.constexpr, K_WORD: tl.constexpr,
    V_BITS: tl.constexpr, V_GROUPS: tl.constexpr, V_SYMMETRIC: tl.constexpr, V_PAIRED: tl.constexpr, V_WORD: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """``q_out`` ``[B, Hq, D]``, and the token of row ``program_id(0)`` at slot first + held + counter of every KV head's pair."""
    if OVERLAPS:
        release()
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, D)
    type = keys.dtype.element_ty if K_BITS == 16 else k_zero.dtype.element_ty
    own = tl.maximum(head - HEADS, 0) % KV_HEADS
    pair = row * KV_HEADS + own
    slot = tl.load(first + pair) + tl.load(held + pair) + tl.load(counter)
    if OVERLAPS:
        wait()
    if head < HEADS:
        x = _turned(q + row * q_row + head * D, q_weight, cos + row * rope_row, sin + row * rope_row, eps, D, R, ROPE, NORM)
        tl.store(q_out + (row * HEADS + head) * D + d, x)
    elif head < HEADS + KV_HEADS:
        x = _turned(k + row * k_row + own * D, k_weight, cos + row * rope_row, sin + row * rope_row, eps, D, R, ROPE, NORM)
        if K_BITS == 16:
            tl.store(keys + slot * D + d, x.to(type))
        else:
            P: tl.constexpr = K_WORD // K_BITS
            CHUNKS: tl.constexpr = K_GROUPS // P if K_GROUPS > P else 1
            WORDS: tl.constexpr = D // CHUNKS // P
            codes, scale, zero = _quantised(x, K_GROUPS, D, K_BITS, K_SYMMETRIC, type)
            dealt = tl.reshape(codes, [CHUNKS, P, WORDS]) << (tl.arange(0, P) * K_BITS)[None, :, None]
            words = tl.reshape(tl.sum(dealt, 1), [CHUNKS * WORDS])
            tl.store(keys + slot * (D // P) + tl.arange(0, CHUNKS * WORDS), words.to(keys.dtype.element_ty))
            _put_steps(k_scale, k_zero, tl.arange(0, K_GROUPS) * k_stride + slot, scale, zero, K_SYMMETRIC, K_PAIRED)
    else:
        e = tl.arange(0, DV_WIDE)
        y = tl.load(v + row * v_row + own * DV + e, mask=e < DV, other=0.0)
        if V_BITS == 16:
            tl.store(values + slot * DV + e, y.to(values.dtype.element_ty), mask=e < DV)
        else:
            _put_values(y, values, v_scale, v_zero, slot, v_stride, DV, T, V_BITS, V_GROUPS, V_SYMMETRIC, V_PAIRED, V_WORD)
