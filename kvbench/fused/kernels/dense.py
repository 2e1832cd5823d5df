"""Plain numbers read: one part of the tokens of a row and KV head."""

from __future__ import annotations

import triton
import triton.language as tl

from kvbench.fused.kernels.parts import part_of
from kvbench.fused.kernels.waiting import release, wait


@triton.jit
def absorb(queries, k, v, inside, scaling, best, mass, out):
    """One tile of dense keys ``[D, T]`` and values ``[T, DV]`` taken into a running softmax in base 2, queries ``[N, D]`` being rows."""
    s = tl.dot(queries, k, input_precision="ieee") * scaling
    s = tl.where(inside[None, :], s, -float("inf"))
    higher = tl.maximum(best, tl.max(s, 1))
    decay = tl.exp2(best - higher)
    p = tl.exp2(s - higher[:, None])
    out = tl.dot(p.to(v.dtype), v, out * decay[:, None], input_precision="ieee")
    return higher, mass * decay + tl.sum(p, 1), out


@triton.jit(do_not_specialize=["slots", "base"])
def split_dense(
    q, keys, values, first, held, counter, part, stat, scaling, slots, base,
    GROUP: tl.constexpr, N: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DV_WIDE: tl.constexpr, T: tl.constexpr,
    GROWS: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """As :func:`kvbench.fused.kernels.read.split` where keys ``[tokens, D]`` and values ``[tokens, DV]`` are plain numbers.

    Queries are rows here, N of them.
    """
    if OVERLAPS:
        release()
    pair = tl.program_id(0)
    slot = tl.program_id(1)
    start, n, begin, end = part_of(first, held, counter, pair, T, 0, GROWS)
    if OVERLAPS:
        wait()

    t = tl.arange(0, T)
    g = tl.arange(0, N)
    d = tl.arange(0, D)
    e = tl.arange(0, DV_WIDE)
    queries = tl.load(q + (pair * GROUP + g)[:, None] * D + d[None, :], mask=(g < GROUP)[:, None], other=0.0)
    best = tl.full([N], -float("inf"), tl.float32)
    mass = tl.zeros([N], tl.float32)
    out = tl.zeros([N, DV_WIDE], tl.float32)
    for low in range(begin, end, T):
        token = start + low + t
        inside = low + t < n
        k = tl.load(keys + token[None, :] * D + d[:, None], mask=inside[None, :], other=0.0)
        v = tl.load(values + token[:, None] * DV + e[None, :], mask=inside[:, None] & (e < DV)[None, :], other=0.0)
        best, mass, out = absorb(queries, k, v, inside, scaling, best, mass, out)
    place = pair.to(tl.int64) * slots + base + slot
    tl.store(part + (place * N + g)[:, None] * DV + e[None, :], out, mask=(e < DV)[None, :])
    tl.store(stat + place * 2 * N + g, best)
    tl.store(stat + (place * 2 + 1) * N + g, mass)
