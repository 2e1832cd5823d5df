"""Codes read: one part of the tokens of a row and KV head, each number once.

Flash-decoding (Dao et al. 2023) with the scores transposed: tokens and channels are the rows of both products,
``Sᵀ = K qᵀ`` and ``Oᵀ = Vᵀ Pᵀ``, and the queries of a KV head its eight columns. Codes then go from memory to the
tensor cores' registers as they lie, without a detour of the numbers that they stand for.

Scales are never multiplied into codes: those of keys go onto the products, those of values onto the probabilities,
and zero points onto sums of queries and of probabilities:

    q·k̂ = Σ_g s_g (q_g·c_g) + z_g Σ q_g,        Σ_t p v̂ = Σ_t (p s_g) c + Σ_t p z_g.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvbench.fused.kernels.bits import planes
from kvbench.fused.kernels.parts import part_of
from kvbench.fused.kernels.waiting import release, wait


@triton.jit
def _steps(scale, zero, at, inside, PAIRED: tl.constexpr, SYMMETRIC: tl.constexpr, TYPE: tl.constexpr):
    """Scales and zero points of tokens, 0 outside; a zero point of a symmetric format is not read."""
    if PAIRED:
        pair = tl.load(scale + at, mask=inside, other=0)
        s = pair.to(tl.int16).to(TYPE, bitcast=True).to(tl.float32)
        z = (pair >> 16).to(tl.int16).to(TYPE, bitcast=True).to(tl.float32)
    else:
        s = tl.load(scale + at, mask=inside, other=0.0).to(tl.float32)
        z = s
        if not SYMMETRIC:
            z = tl.load(zero + at, mask=inside, other=0.0).to(tl.float32)
    return s, z


@triton.jit
def _rows(x, P: tl.constexpr, X: tl.constexpr, N: tl.constexpr):
    """``[P·X, N]`` as a tuple of P tiles ``[X, N]`` of neighbouring rows; P is 2 or 4."""
    apart = tl.permute(tl.reshape(x, [P, X, N]), [1, 2, 0])
    if P == 2:
        a, b = tl.split(apart)
        out = (a, b)
    else:
        a, b = tl.split(tl.permute(tl.reshape(apart, [X, N, 2, 2]), [0, 1, 3, 2]))
        a0, a1 = tl.split(a)
        b0, b1 = tl.split(b)
        out = (a0, a1, b0, b1)
    return out


@triton.jit
def _queries(
    query, is_query, TYPE: tl.constexpr, N: tl.constexpr, D: tl.constexpr, GROUPS: tl.constexpr, WORD: tl.constexpr, BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr, SPAN: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Queries as the keys' planes want them: a piece ``[WORDS, N]`` a plane, and for every group their sum and planes' excess."""
    P: tl.constexpr = WORD // BITS
    CHUNKS: tl.constexpr = GROUPS // P if GROUPS > P else 1
    WORDS: tl.constexpr = D // CHUNKS // P
    EACH: tl.constexpr = CHUNKS * P // GROUPS  # planes of a group
    OFFSET: tl.constexpr = 0 if not FAST else (-128.0 if BITS == 8 else 128.0)
    CENTRE: tl.constexpr = 1 << (BITS - 1) if SYMMETRIC else 0
    w = tl.arange(0, WORDS)
    pieces = ()
    sums = ()
    starts = ()
    for i in tl.static_range(GROUPS):
        total = tl.zeros([N], tl.float32)
        begins = tl.zeros([N], tl.float32)
        for j in tl.static_range(EACH):
            piece = tl.load(query + ((i * EACH + j) * WORDS + w)[:, None], mask=is_query, other=0.0)
            own = tl.sum(piece.to(tl.float32), 0)
            if FAST and BITS == 2 and not SPAN:
                shrink = 1.0 if (i * EACH + j) % P % 3 == 0 else (0.25 if (i * EACH + j) % P % 3 == 1 else 0.0625)
                piece = (piece.to(tl.float32) * shrink).to(TYPE)
                begins -= own * (shrink * OFFSET) + own * CENTRE
            else:
                begins -= own * (OFFSET + CENTRE)
            total += own
            pieces = pieces + (piece,)
        sums = sums + (total,)
        starts = starts + (begins,)
    return pieces, sums, starts


@triton.jit
def _token_scores(
    keys, k_scale, k_zero, k_stride, token, inside, pieces, sums, starts, scaling, TYPE: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    T: tl.constexpr, GROUPS: tl.constexpr, WORD: tl.constexpr, BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr, PAIRED: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Scores ``[T, N]`` of tokens that have a scale for every group of channels: those go onto the groups' products."""
    P: tl.constexpr = WORD // BITS
    CHUNKS: tl.constexpr = GROUPS // P if GROUPS > P else 1
    WORDS: tl.constexpr = D // CHUNKS // P
    EACH: tl.constexpr = CHUNKS * P // GROUPS  # planes of a group
    w = tl.arange(0, WORDS)
    s = tl.zeros([T, N], tl.float32)
    for c in tl.static_range(CHUNKS):
        words = tl.load(keys + token[:, None] * (D // P) + c * WORDS + w[None, :])
        codes = planes(words, WORD, BITS, FAST, TYPE)
        for i in tl.static_range(P // EACH):
            product = tl.broadcast_to(starts[c * P // EACH + i][None, :], [T, N])
            for j in tl.static_range(EACH):
                product = tl.dot(codes[i * EACH + j], pieces[c * P + i * EACH + j], product, input_precision="ieee")
            ks, kz = _steps(k_scale, k_zero, (c * P // EACH + i) * k_stride + token, inside, PAIRED, SYMMETRIC, TYPE)
            s += product * (ks * scaling)[:, None]
            if not SYMMETRIC:
                s += (kz * scaling)[:, None] * sums[c * P // EACH + i][None, :]
    return s


@triton.jit
def _span_scores(
    keys, k_scale, k_zero, token, pieces, scaling, TYPE: tl.constexpr, N: tl.constexpr, D: tl.constexpr, SPAN: tl.constexpr,
    WORD: tl.constexpr, BITS: tl.constexpr, SYMMETRIC: tl.constexpr, PAIRED: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Scores ``[SPAN, N]`` of tokens of which every channel has a scale: those go onto the queries, ``Σ (q s) c + Σ q z``."""
    P: tl.constexpr = WORD // BITS
    WORDS: tl.constexpr = D // P
    OFFSET: tl.constexpr = 0 if not FAST else (-128.0 if BITS == 8 else 128.0)
    CENTRE: tl.constexpr = 1 << (BITS - 1) if SYMMETRIC else 0
    t = tl.arange(0, SPAN)
    w = tl.arange(0, WORDS)
    words = tl.load(keys + (token + t)[:, None] * WORDS + w[None, :])
    codes = planes(words, WORD, BITS, FAST, TYPE)
    scaled = ()
    total = tl.zeros([N], tl.float32)
    for j in tl.static_range(P):
        at = (token // SPAN) * D + j * WORDS + w
        ks, kz = _steps(k_scale, k_zero, at, w < WORDS, PAIRED, SYMMETRIC, TYPE)
        query = pieces[j].to(tl.float32)
        shrink = 1.0 if not (FAST and BITS == 2) or j % 3 == 0 else (0.25 if j % 3 == 1 else 0.0625)
        piece = (query * (ks * shrink)[:, None]).to(TYPE)
        excess = piece.to(tl.float32) * (OFFSET + CENTRE / shrink)  # of what is multiplied, so that its rounding cancels
        if SYMMETRIC:
            total -= tl.sum(excess, 0)
        else:
            total += tl.sum(query * kz[:, None] - excess, 0)
        scaled = scaled + (piece,)
    product = tl.broadcast_to(total[None, :], [SPAN, N])
    for j in tl.static_range(P):
        product = tl.dot(codes[j], scaled[j], product, input_precision="ieee")
    return product * scaling


@triton.jit
def _channel_scores(
    keys, k_scale, k_zero, token, pieces, scaling, TYPE: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    T: tl.constexpr, SPAN: tl.constexpr, WORD: tl.constexpr, BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr, PAIRED: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Scores ``[T, N]`` of one or two spans."""
    if SPAN == T:
        s = _span_scores(keys, k_scale, k_zero, token, pieces, scaling, TYPE, N, D, SPAN, WORD, BITS, SYMMETRIC, PAIRED, FAST)
    else:
        a = _span_scores(keys, k_scale, k_zero, token, pieces, scaling, TYPE, N, D, SPAN, WORD, BITS, SYMMETRIC, PAIRED, FAST)
        b = _span_scores(keys, k_scale, k_zero, token + SPAN, pieces, scaling, TYPE, N, D, SPAN, WORD, BITS, SYMMETRIC, PAIRED, FAST)
        s = tl.reshape(tl.permute(tl.join(a, b), [2, 0, 1]), [T, N])
    return s


@triton.jit
def _weights(
    p, scale, zero, group, stride, token, inside, shrinks, TYPE: tl.constexpr, T: tl.constexpr, COLUMNS: tl.constexpr,
    TOGETHER: tl.constexpr, BITS: tl.constexpr, SYMMETRIC: tl.constexpr, PAIRED: tl.constexpr, FAST: tl.constexpr, HAS_ZEROS: tl.constexpr,
):  # fmt: skip
    """Probabilities times scales ``[T, COLUMNS]`` in ``TYPE``, and times zero points, summed to ``[8, COLUMNS]``.

    Of two groups, where they are taken together, side by side.
    """
    s, z = _steps(scale, zero, group * stride + token, inside, PAIRED, SYMMETRIC, TYPE)
    if SYMMETRIC:
        z = s * (-(1 << (BITS - 1)))
    if FAST and BITS == 2:
        s = s * shrinks
    weights, zeros = p * s[:, None], p * z[:, None]
    if TOGETHER == 2:
        s, z = _steps(scale, zero, (group + 1) * stride + token, inside, PAIRED, SYMMETRIC, TYPE)
        if SYMMETRIC:
            z = s * (-(1 << (BITS - 1)))
        if FAST:
            s = s * shrinks
        weights = tl.reshape(tl.join(weights, p * s[:, None]), [T, COLUMNS])
        zeros = tl.reshape(tl.join(zeros, p * z[:, None]), [T, COLUMNS])
    summed = zeros
    if HAS_ZEROS:
        summed = tl.sum(tl.reshape(zeros, [T // 8, 8, COLUMNS]), 0)
    return weights.to(TYPE), summed


@triton.jit(do_not_specialize=["slots", "base"])
def split(
    q, keys, k_scale, k_zero, values, v_scale, v_zero, first, held, counter, part, stat, scaling, slots, base, k_stride, v_stride,
    GROUP: tl.constexpr, N: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, T: tl.constexpr, GROWS: tl.constexpr,
    K_BITS: tl.constexpr, K_GROUPS: tl.constexpr, K_SYMMETRIC: tl.constexpr, K_PAIRED: tl.constexpr, K_WORD: tl.constexpr,
    V_BITS: tl.constexpr, V_GROUPS: tl.constexpr, V_SYMMETRIC: tl.constexpr, V_PAIRED: tl.constexpr, V_WORD: tl.constexpr,
    K_SPAN: tl.constexpr, LAG: tl.constexpr, FAST: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Part ``program_id(1)`` of the tokens of row and KV head ``program_id(0)``.

    q ``[B, Hkv·GROUP, D]``; keys, values: a region's, see :class:`kvbench.fused.storage.Region`; first, held ``[B·Hkv]``; counter ``[1]``.
    part ``[B·Hkv, slots, N, DV]`` float32, stat ``[B·Hkv, slots, 2, N]`` float32, from slot ``base`` on: weighed sums, the
    largest logit in base 2 and the mass over it.
    """
    if OVERLAPS:
        release()
    pair = tl.program_id(0)
    slot = tl.program_id(1)
    type = q.dtype.element_ty
    start, n, begin, end = part_of(first, held, counter, pair, T, LAG, GROWS)
    if OVERLAPS:
        wait()

    t = tl.arange(0, T)
    g = tl.arange(0, N)
    d = tl.arange(0, D)
    query = q + (pair * GROUP + g)[None, :] * D
    is_query = (g < GROUP)[None, :]

    if K_BITS == 16:
        whole = tl.load(query + d[:, None], mask=is_query, other=0.0)
    else:
        pieces, sums, starts = _queries(query, is_query, type, N, D, K_GROUPS, K_WORD, K_BITS, K_SYMMETRIC, K_SPAN, FAST)

    TOGETHER: tl.constexpr = 2 if V_BITS == 2 and DV // V_GROUPS == 32 else 1  # bytes of 64 channels go to registers as they lie
    SETS: tl.constexpr = 1 if V_BITS == 16 else V_GROUPS // TOGETHER
    COLUMNS: tl.constexpr = N * TOGETHER  # a query's for every group of the set, side by side
    WIDTH: tl.constexpr = DV // SETS
    HAS_OFFSET: tl.constexpr = FAST and V_BITS != 16 and not (V_SYMMETRIC and V_BITS == 8)
    e = tl.arange(0, WIDTH)
    if V_BITS != 16:
        V_P: tl.constexpr = V_WORD // V_BITS
        X: tl.constexpr = T // V_P
        HAS_ZEROS: tl.constexpr = not (V_SYMMETRIC and V_BITS == 8 and FAST)
        x = tl.arange(0, X)
        ones = tl.full([16, X], 1.0, type)
        plane = t // X
        shrinks = tl.where(plane % 3 == 0, 1.0, tl.where(plane % 3 == 1, 0.25, 0.0625))
    best = tl.full([N], -float("inf"), tl.float32)
    mass = tl.zeros([8, N], tl.float32)  # of every eighth token: summed up once, at the end
    out = ()
    zeros = ()
    offsets = ()
    for _ in tl.static_range(SETS):
        out = out + (tl.zeros([WIDTH, COLUMNS], tl.float32),)
        zeros = zeros + (tl.zeros([8, COLUMNS], tl.float32),)
        offsets = offsets + (tl.zeros([16, COLUMNS], tl.float32),)

    for low in range(begin, end, T):
        token = start + low + t
        inside = low + t < n
        # Scores [T, N] -------------------------------------------------------------------------
        if K_BITS == 16:
            tile = tl.load(keys + token[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
            s = tl.dot(tile, whole, input_precision="ieee") * scaling
        elif K_SPAN:
            s = _channel_scores(
                keys, k_scale, k_zero, start + low, pieces, scaling, type, N, D, T, K_SPAN, K_WORD, K_BITS, K_SYMMETRIC, K_PAIRED, FAST
            )
        else:
            s = _token_scores(
                keys, k_scale, k_zero, k_stride, token, inside, pieces, sums, starts, scaling, type, N, D, T,
                K_GROUPS, K_WORD, K_BITS, K_SYMMETRIC, K_PAIRED, FAST,
            )  # fmt: skip
        s = tl.where(inside[:, None], s, -float("inf"))
        # Online softmax, in base 2 -------------------------------------------------------------
        higher = tl.maximum(best, tl.max(s, 0))
        decay = tl.exp2(best - higher)
        p = tl.exp2(s - higher[None, :])
        best = higher
        mass = mass * decay[None, :] + tl.sum(tl.reshape(p, [T // 8, 8, N]), 0)
        # Weighed values [WIDTH, N], a group of channels at a time -------------------------------
        weighed = ()
        zeroed = ()
        shifted = ()
        fading = decay
        if TOGETHER == 2:
            fading = tl.reshape(tl.join(decay, decay), [COLUMNS])
        for i in tl.static_range(SETS):
            acc = out[i] * fading[None, :]
            zero = zeros[i]
            offset = offsets[i]
            if V_BITS == 16:
                tile = tl.load(values + token[:, None] * DV + e[None, :], mask=inside[:, None], other=0.0)
                acc = tl.dot(tl.trans(tile), p.to(type), acc, input_precision="ieee")
            else:
                scaled, offset_by = _weights(
                    p, v_scale, v_zero, i * TOGETHER, v_stride, token, inside, shrinks, type, T, COLUMNS, TOGETHER,
                    V_BITS, V_SYMMETRIC, V_PAIRED, FAST, HAS_ZEROS,
                )  # fmt: skip
                block = values + (start + low) * (DV // V_P) + (i * WIDTH + e)[:, None] * X
                codes = planes(tl.load(block + x[None, :]), V_WORD, V_BITS, FAST, type)
                parts = _rows(scaled, V_P, X, COLUMNS)
                if HAS_OFFSET:
                    offset = offset * fading[None, :]
                for j in tl.static_range(V_P):
                    acc = tl.dot(codes[j], parts[j], acc, input_precision="ieee")
                    if HAS_OFFSET:
                        offset = tl.dot(ones, parts[j], offset, input_precision="ieee")
                if HAS_ZEROS:
                    zero = zero * fading[None, :] + offset_by
            weighed = weighed + (acc,)
            zeroed = zeroed + (zero,)
            shifted = shifted + (offset,)
        out = weighed
        zeros = zeroed
        offsets = shifted

    place = pair.to(tl.int64) * slots + base + slot
    for i in tl.static_range(SETS):
        total = out[i] + tl.sum(zeros[i], 0)[None, :]
        if HAS_OFFSET:  # every row of the product with ones is the same sum
            total -= (128.0 if V_BITS != 8 else -128.0) * (tl.sum(offsets[i], 0) / 16)[None, :]
        if TOGETHER == 2:  # of both groups' columns, those of the channel's own
            lower, upper = tl.split(tl.reshape(total, [WIDTH, N, 2]))
            total = tl.where((e < WIDTH // 2)[:, None], lower, upper)
        tl.store(part + (place * N + g)[None, :] * DV + (i * WIDTH + e)[:, None], total)
    tl.store(stat + place * 2 * N + g, best)
    tl.store(stat + (place * 2 + 1) * N + g, tl.sum(mass, 0))
