"""Codes of 2, 3, 4 and 8 bits: packed bytes, and the numbers they stand for.

Affine quantisation of a group: ``x̂ = code · scale + zero`` with ``scale = (max − min) / (2^bits − 1)``
and ``zero = min`` (asymmetric; KIVI, arXiv 2402.02750, §2), or ``zero = 0`` and codes centred on
``2^(bits−1)`` with ``scale = max|x| / (2^(bits−1) − 1)`` (symmetric). Scale and zero point are rounded
to the format in which they are stored *before* the codes are chosen, so that the error of that
rounding is not added to the codes' own.

Floating codes are OCP FP8 e4m3 (arXiv 2209.05433): ``scale = max|x| / 448``, codes ``x / scale`` rounded to
the nearest of the format's numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BITS = (2, 3, 4, 8)
Axis = Literal["token", "channel"]
E4M3_MAX = 448.0


@dataclass(frozen=True)
class Scheme:
    """How a tensor ``[B, H, T, D]`` is quantised.

    Attributes:
        bits: 2, 3, 4 or 8.
        group: Elements that share a scale: channels of one token (``axis="token"``) or tokens of one channel.
        axis: ``token`` groups along the head (each token stands alone); ``channel`` along time.
        symmetric: Store no zero point.
        floating: Codes are e4m3 numbers instead of integers; 8 bits, symmetric.
    """

    bits: int
    group: int
    axis: Axis = "token"
    symmetric: bool = False
    floating: bool = False

    def __post_init__(self) -> None:
        if self.floating and not (self.bits == 8 and self.symmetric):
            raise ValueError("floating codes have 8 bits and no zero point")
        if self.bits not in BITS:
            raise ValueError(f"bits={self.bits}; it must be one of {', '.join(map(str, BITS))}")
        if self.group < 1:
            raise ValueError(f"group={self.group}; it must be at least 1")

    @property
    def levels(self) -> int:
        return (1 << self.bits) - 1

    @property
    def centre(self) -> int:
        """Code of zero in the symmetric form."""
        return 1 << (self.bits - 1)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack ``codes`` ``[..., D]`` (uint8, each below ``2^bits``) into ``[..., D·bits/8]`` bytes.

    Raises:
        ValueError: ``D·bits`` is not a whole number of bytes.
    """
    if bits == 8:
        return codes
    per, size = _block(bits)
    if codes.shape[-1] % per:
        raise ValueError(f"{codes.shape[-1]} codes of {bits} bits do not fill whole bytes: a multiple of {per} is needed")
    grouped = torch.unflatten(codes.to(torch.int32), -1, (-1, per))  # [..., blocks, per]
    shifts = torch.arange(per, device=codes.device, dtype=torch.int32) * bits
    words = (grouped << shifts).sum(-1, dtype=torch.int32)  # [..., blocks], at most 24 bits each
    bytes_ = (words[..., None] >> (8 * torch.arange(size, device=codes.device, dtype=torch.int32))) & 0xFF
    return bytes_.to(torch.uint8).flatten(-2)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The codes ``[..., D]`` (uint8) of ``packed`` ``[..., D·bits/8]``."""
    if bits == 8:
        return packed
    per, size = _block(bits)
    if size == 1:  # 2 and 4 bits stay in bytes all the way
        shifts = torch.arange(per, device=packed.device, dtype=torch.uint8) * bits
        return ((packed[..., None] >> shifts) & ((1 << bits) - 1)).flatten(-2)
    grouped = torch.unflatten(packed.to(torch.int32), -1, (-1, size))
    words = (grouped << (8 * torch.arange(size, device=packed.device, dtype=torch.int32))).sum(-1, dtype=torch.int32)
    shifts = torch.arange(per, device=packed.device, dtype=torch.int32) * bits
    return ((words[..., None] >> shifts) & ((1 << bits) - 1)).to(torch.uint8).flatten(-2)


def _block(bits: int) -> tuple[int, int]:
    """(codes, bytes) of the smallest block that ends on a byte: 8 in 3 for three bits, else 8/bits in 1."""
    return (8, 3) if bits == 3 else (8 // bits, 1)


def quantise(x: Tensor, scheme: Scheme, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scales and zero points of ``x`` ``[B, H, T, D]``.

    Returns:
        codes ``[B, H, T, D]`` uint8; scales and zeros ``[B, H, T, D/group]`` (token axis) or
        ``[B, H, T/group, D]`` (channel axis) in ``scale_dtype``; zeros are ``None`` when symmetric.

    Raises:
        ValueError: the group does not divide the axis it runs along.
    """
    grouped, dim = _grouped(x.to(torch.promote_types(x.dtype, torch.float32)), scheme)
    if scheme.floating:
        scale = (grouped.abs().amax(dim, keepdim=True) / E4M3_MAX).to(scale_dtype)
        floats = (grouped / _no_zero(scale.to(grouped.dtype))).clamp(-E4M3_MAX, E4M3_MAX)  # beyond it the format has NaN only
        return floats.to(torch.float8_e4m3fn).view(torch.uint8).reshape(x.shape), scale.squeeze(dim), None
    if scheme.symmetric:
        scale = grouped.abs().amax(dim, keepdim=True) / (scheme.centre - 1)
        scale, zero = scale.to(scale_dtype), None
        codes = grouped / _no_zero(scale.to(grouped.dtype)) + scheme.centre
    else:
        low, high = grouped.amin(dim, keepdim=True), grouped.amax(dim, keepdim=True)
        zero = low.to(scale_dtype)
        scale = ((high - zero.to(grouped.dtype)) / scheme.levels).to(scale_dtype)
        codes = (grouped - zero.to(grouped.dtype)) / _no_zero(scale.to(grouped.dtype))
    codes = codes.round().clamp(0, scheme.levels).to(torch.uint8)
    return codes.reshape(x.shape), scale.squeeze(dim), None if zero is None else zero.squeeze(dim)


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor | None, scheme: Scheme, dtype: torch.dtype) -> Tensor:
    """``x̂`` ``[B, H, T, D]`` in ``dtype`` from what :func:`quantise` returned; the arithmetic is float32 or wider, as a kernel's is."""
    wide = torch.promote_types(dtype, torch.float32)
    numbers = codes.view(torch.float8_e4m3fn) if scheme.floating else codes
    grouped, dim = _grouped(numbers.to(wide), scheme)
    steps = scale.to(wide).unsqueeze(dim)
    if scheme.floating:
        return (grouped * steps).reshape(codes.shape).to(dtype)
    x = (grouped - scheme.centre) * steps if zero is None else grouped * steps + zero.to(wide).unsqueeze(dim)
    return x.reshape(codes.shape).to(dtype)


def _grouped(x: Tensor, scheme: Scheme) -> tuple[Tensor, int]:
    """``x`` with its grouped axis split, and the axis to reduce."""
    along, name = (3, "head size") if scheme.axis == "token" else (2, "number of tokens")
    if x.shape[along] % scheme.group:
        raise ValueError(f"group={scheme.group} does not divide the {name}, {x.shape[along]}")
    return torch.unflatten(x, along, (-1, scheme.group)), along + 1


def _no_zero(scale: Tensor) -> Tensor:
    """A constant group has scale 0 and code 0; dividing by 1 gives just that."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)
