"""Parts of a long cache: where each begins and ends, and how they are put together (flash-decoding, Dao et al. 2023)."""

from __future__ import annotations

import triton
import triton.language as tl

from kvbench.fused.kernels.waiting import follow


@triton.jit
def part_of(first, held, counter, pair, T: tl.constexpr, LAG: tl.constexpr, GROWS: tl.constexpr):
    """First slot of a pair, and of its n tokens where this program's part begins and ends, whole tiles from a tile on."""
    start = tl.multiple_of(tl.load(first + pair), T)
    n = tl.load(held + pair)
    if GROWS:
        n += tl.load(counter) + 1
    n = tl.maximum(n - LAG, 0)
    each = tl.cdiv(tl.cdiv(n, tl.num_programs(1)), T) * T
    begin = tl.program_id(1) * each
    return start, n, begin, tl.minimum(begin + each, n)


@triton.jit(do_not_specialize=["slots"])
def combine(
    part, stat, out, slots,
    GROUP: tl.constexpr, N: tl.constexpr, DV: tl.constexpr, CHANNELS: tl.constexpr, AT_ONCE: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """The parts of one row and query head together, ``AT_ONCE`` at a time, ``CHANNELS`` of them a program: ``out`` ``[B, Hq, DV]``."""
    follow(OVERLAPS)
    head = tl.program_id(0)
    pair = (head // GROUP).to(tl.int64)
    g = head % GROUP
    e = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    best = tl.full([1], -float("inf"), tl.float32)
    mass = tl.zeros([1], tl.float32)
    total = tl.zeros([CHANNELS], tl.float32)
    for low in range(0, slots, AT_ONCE):
        s = low + tl.arange(0, AT_ONCE)
        inside = s < slots
        place = pair * slots + s
        own = tl.load(stat + place * 2 * N + g, mask=inside, other=-float("inf"))
        higher = tl.maximum(best, tl.max(own, 0))
        shift = tl.where(higher == -float("inf"), 0.0, higher)  # where no part so far has a token
        share, decay = tl.exp2(own - shift), tl.exp2(best - shift)
        held = tl.load(stat + (place * 2 + 1) * N + g, mask=inside, other=0.0)
        rows = tl.load(part + (place * N + g)[:, None] * DV + e[None, :], mask=inside[:, None] & (e < DV)[None, :], other=0.0)
        mass = mass * decay + tl.sum(held * share, 0)
        total = total * decay + tl.sum(rows * share[:, None], 0)
        best = higher
    tl.store(out + head.to(tl.int64) * DV + e, (total / mass).to(out.dtype.element_ty), mask=e < DV)
