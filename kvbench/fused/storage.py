"""Stored tokens in the kernels' own layout, taken over from a layer's cache.

A region holds tokens of every row and KV head (a *pair*) one after the other, each pair from a whole tile on, so that
heads may be of different lengths. Tokens appended later go behind those of their pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.caches.packing import Scheme, dequantise, quantise, unpack
from kvbench.caches.stores import DenseStore, QuantStore
from kvbench.fused.layout import DENSE, TILE, Format, pack_columns, pack_rows, unpack_columns, unpack_rows


class NotFused(Exception):
    """A layer's storage has no kernel; says why."""


@dataclass(frozen=True)
class Held:
    """Keys or values of some tokens of some pairs, as a store of the cache holds them.

    Attributes:
        form: The format they have. dtype: Of dense numbers, scales and zero points.
        numbers: Dense ``[B, H, n, W]`` or codes ``[B, H, n, W]`` (uint8).
        scales, zeros: ``[B, H, n, groups]``, where there are any.
    """

    form: Format
    dtype: torch.dtype
    numbers: Tensor
    scales: Tensor | None = None
    zeros: Tensor | None = None

    @classmethod
    def of(cls, store: DenseStore | QuantStore, width: int = 0, like: Tensor | None = None) -> Held:
        """What ``store`` holds.

        Args:
            width, like: Channels, and any tensor ``[B, H, …]`` of the layer, for a store that may hold nothing yet.

        Raises:
            NotFused: no kernel reads its format.
        """
        if store.length == 0 and like is not None:
            if isinstance(store, DenseStore):
                return cls.nothing(Format(width), store.buffer.dtype, like)
            return cls.nothing(format_of(store.scheme, width), store.scale_dtype, like)
        if isinstance(store, DenseStore):
            numbers = store.buffer.view()
            return cls(Format(numbers.shape[3]), numbers.dtype, numbers)
        form = format_of(store.scheme, unpacked_width(store))
        zeros = None if store.zeros is None else store.zeros.view()
        return cls(form, store.scale_dtype, unpack(store.codes.view(), form.bits), store.scales.view(), zeros)

    @classmethod
    def nothing(cls, form: Format, dtype: torch.dtype, like: Tensor) -> Held:
        """No tokens of the pairs of ``like`` ``[B, H, …]``, in a format in which some will come."""
        kind = dtype if form.bits == DENSE else torch.uint8
        return cls(form, dtype, like.new_zeros(*like.shape[:2], 0, form.width, dtype=kind))

    @property
    def length(self) -> int:
        return self.numbers.shape[2]


def unpacked_width(store: QuantStore) -> int:
    """Codes in a row of ``store``."""
    return store.codes.view().shape[3] * 8 // store.scheme.bits


def format_of(scheme: Scheme, width: int) -> Format:
    """The kernels' format of what ``scheme`` stores.

    Raises:
        NotFused: there is none.
    """
    if scheme.floating:
        raise NotFused("floating-point codes")
    span = scheme.group if scheme.axis == "channel" else 0
    form = Format(width, scheme.bits, scheme.group, scheme.symmetric, span)
    if form.objection():
        raise NotFused(form.objection())
    return form


@dataclass
class Plane:
    """One side of a region: ``S`` token slots.

    Attributes:
        form: Its format. paired: Scale and zero point lie together in one 32-bit word.
        numbers: ``[S, W]`` dense; keys' words ``[S, W / planes]``, values' ``[S / 64, W, 64 / planes]``.
        scales: ``[groups, S]``, or ``[S / span, W]``; int32 pairs where ``paired``. zeros: as ``scales``, or ``None``.
    """

    form: Format
    numbers: Tensor
    scales: Tensor | None = None
    zeros: Tensor | None = None

    @property
    def paired(self) -> bool:
        return self.scales is not None and self.scales.dtype == torch.int32

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """What a query reads of one token."""
        form, each = self.form, dtype.itemsize * (1 if self.form.symmetric else 2)
        if form.bits == DENSE:
            return form.width * dtype.itemsize
        return form.width * form.bits // 8 + (form.width * each // form.span if form.span else form.groups * each)


@dataclass
class Region:
    """Tokens of all pairs of a layer in one pair of formats.

    Attributes:
        first: ``[B·Hkv]`` int64, each pair's first slot, a multiple of 64. held: ``[B·Hkv]`` int32, tokens when it was made.
        tokens: Their sum. longest: Their largest. grows: Whether new tokens are appended here.
        keys, values: Both sides. dtype: Of dense numbers, scales and zero points.
        lag: Newest tokens of each pair that are not here but in a window.
    """

    first: Tensor
    held: Tensor
    tokens: int
    longest: int
    grows: bool
    keys: Plane
    values: Plane
    dtype: torch.dtype
    lag: int = 0

    @property
    def is_dense(self) -> bool:
        return self.keys.form.bits == self.values.form.bits == DENSE

    def read_bytes(self, appended: int) -> int:
        """Bytes that a query reads when ``appended`` tokens have come since."""
        count = self.tokens + (appended * len(self.held) if self.grows else 0) - self.lag * len(self.held)
        count = max(0, count)  # of pairs of equal length, where there is a window
        return count * (self.keys.bytes_per_token(self.dtype) + self.values.bytes_per_token(self.dtype))


def region_of(cells: Sequence[tuple[Held, Held]], pairs: int, reserve: int, *, grows: bool, lag: int = 0) -> Region:
    """A region of ``cells``, keys and values: one of all ``pairs`` together or one each, in order.

    Args:
        reserve: Tokens that may be appended to each pair.
        lag: Newest tokens that are counted here, and held in a window.
    """
    lengths = [values.length + lag for _, values in cells for _ in range(pairs // len(cells))]
    rooms = [-(-max(1, n + (reserve if grows else 0)) // TILE) * TILE for n in lengths]
    starts = [0]
    for room in rooms:
        starts.append(starts[-1] + room)
    device = cells[0][0].numbers.device
    keys = _plane([k for k, _ in cells], starts, device, is_value=False)
    values = _plane([v for _, v in cells], starts, device, is_value=True)
    first, held = torch.tensor(starts[:-1], device=device), torch.tensor(lengths, dtype=torch.int32, device=device)
    return Region(first, held, sum(lengths), max(lengths), grows, keys, values, cells[0][0].dtype, lag)


def _plane(held: Sequence[Held], starts: Sequence[int], device: torch.device, *, is_value: bool) -> Plane:
    plane = _empty_plane(held[0], starts[-1], device, is_value=is_value)
    pairs = len(starts) - 1
    for index, cell in enumerate(held):
        if cell.length:
            _fill(plane, cell, starts[index * (pairs // len(held)) :], is_value=is_value)
    return plane


def _empty_plane(like: Held, slots: int, device: torch.device, *, is_value: bool) -> Plane:
    form = like.form
    if form.bits == DENSE:
        return Plane(form, torch.zeros(slots, form.width, dtype=like.dtype, device=device))
    deal = form.column if is_value else form.row
    shape = (slots // TILE, form.width, TILE // deal.planes) if is_value else (slots, form.width // deal.planes)
    paired = not form.symmetric and like.dtype.itemsize == 2
    size = (slots // form.span, form.width) if form.span else (form.groups, slots)
    scales = torch.zeros(size, dtype=torch.int32 if paired else like.dtype, device=device)
    zeros = None if form.symmetric or paired else torch.zeros_like(scales)
    return Plane(form, torch.zeros(shape, dtype=deal.dtype, device=device), scales, zeros)


def _fill(plane: Plane, cell: Held, starts: Sequence[int], *, is_value: bool) -> None:
    """Write a cell's tokens, pair by pair: what is unpacked meanwhile is then small."""
    numbers = cell.numbers.flatten(0, 1)
    scales, zeros = (None if t is None else t.flatten(0, 1) for t in (cell.scales, cell.zeros))
    for pair, rows in enumerate(numbers):
        at = slice(starts[pair], starts[pair] + len(rows))
        if plane.form.bits == DENSE:
            plane.numbers[at] = rows
            continue
        put_codes(plane, rows, at.start, is_value=is_value)
        if scales is not None:
            put_steps(plane, at, scales[pair], None if zeros is None else zeros[pair])


def joined(scales: Tensor, zeros: Tensor) -> Tensor:
    """Scales and zero points of two bytes in one 32-bit word each."""
    low, high = (t.contiguous().view(torch.int16).int() for t in (scales, zeros))
    return (low & 0xFFFF) | (high << 16)


def parted(pairs: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`joined`."""
    return (pairs & 0xFFFF).to(torch.int16).view(dtype), (pairs >> 16).to(torch.int16).view(dtype)


def put_codes(plane: Plane, codes: Tensor, start: int, *, is_value: bool) -> None:
    """Write codes ``[n, W]`` from slot ``start`` on; values from a whole tile on."""
    if not is_value:
        plane.numbers[start : start + len(codes)] = pack_rows(codes, plane.form)
        return
    words = pack_columns(F.pad(codes, (0, 0, 0, -len(codes) % TILE)), plane.form)
    plane.numbers[start // TILE : start // TILE + len(words)] = words


def put_steps(plane: Plane, at: slice, scales: Tensor, zeros: Tensor | None) -> None:
    """Write scales and zero points of the tokens ``at``: ``[n, groups]``, or ``[n / span, W]``."""
    if plane.scales is None:
        return
    span = plane.form.span
    where = (slice(at.start // span, at.start // span + len(scales)),) if span else (slice(None), at)
    if not span:
        scales, zeros = scales.T, None if zeros is None else zeros.T
    if plane.paired and zeros is not None:
        plane.scales[where] = joined(scales, zeros)
        return
    plane.scales[where] = scales
    if plane.zeros is not None and zeros is not None:
        plane.zeros[where] = zeros


def steps_at(plane: Plane, at: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The inverse of :func:`put_steps`."""
    if plane.scales is None:
        raise ValueError("plain numbers have no scales")
    span = plane.form.span
    where = (slice(at.start // span, -(-at.stop // span)),) if span else (slice(None), at)
    scales, zeros = plane.scales[where], None if plane.zeros is None else plane.zeros[where]
    if plane.paired:
        scales, zeros = parted(scales, dtype)
    return (scales, zeros) if span else (scales.T, None if zeros is None else zeros.T)


def scheme_of(plane: Plane) -> Scheme:
    """How the reference names a plane's codes."""
    form = plane.form
    return Scheme(form.bits, form.span or form.group, "channel" if form.span else "token", form.symmetric)


def put_token(region: Region, plane: Plane, row: Tensor, slot: int, *, is_value: bool) -> None:
    """Write one token ``[W]`` as its method stores it."""
    if plane.form.bits == DENSE:
        plane.numbers[slot] = row.to(plane.numbers.dtype)
        return
    codes, scale, zero = quantise(row[None, None, None], scheme_of(plane), region.dtype)
    if is_value:  # a tile is written whole
        whole = unpack_columns(plane.numbers[slot // TILE][None], plane.form)
        whole[slot % TILE] = codes[0, 0, 0]
        put_codes(plane, whole, slot - slot % TILE, is_value=True)
    else:
        put_codes(plane, codes[0, 0], slot, is_value=False)
    put_steps(plane, slice(slot, slot + 1), scale[0, 0], None if zero is None else zero[0, 0])


def side(region: Region, plane: Plane, start: int, n: int, dtype: torch.dtype, *, is_value: bool) -> Tensor:
    """``n`` tokens ``[n, W]`` from slot ``start`` on, as a query reads them."""
    if plane.form.bits == DENSE:
        return plane.numbers[start : start + n].to(dtype)
    whole = -(-n // TILE) * TILE  # scales and words are shared by tokens of one tile
    codes = (
        unpack_columns(plane.numbers[start // TILE : (start + whole) // TILE], plane.form)
        if is_value
        else unpack_rows(plane.numbers[start : start + whole], plane.form)
    )
    scales, zeros = steps_at(plane, slice(start, start + whole), region.dtype)
    zeros = None if zeros is None else zeros[None, None]
    return dequantise(codes[None, None], scales[None, None], zeros, scheme_of(plane), dtype)[0, 0, :n]
