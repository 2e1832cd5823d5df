"""How codes lie in the kernels' words.

A word of 16 bits (of 8, where that would be too few of them) holds ``P = word / bits`` codes, one a *plane*. Planes are
unpacked whole, so that neighbours in a register stay neighbours. Keys are rows: a token's words, its channels dealt to
planes by runs. Values are columns: of every 64 tokens each channel's words, the tokens dealt to planes by runs, since
tokens are what their product runs over. The bytes are as many as the reference's (:mod:`kvbench.caches.packing`), in
another order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BITS = (2, 4, 8)
DENSE = 16
"""Bits that stand for plain numbers."""
TILE = 64
"""Tokens that a program reads at a time, and that a column's words are dealt from."""
STEP = 16
"""Length of one step of the tensor cores: fewest words of a row or a column."""


@dataclass(frozen=True)
class Format:
    """How one side of a region's tokens is stored.

    Attributes:
        width: Channels of a token: D, or a rank.
        bits: 2, 4 or 8; 16 is plain numbers.
        group: Neighbouring channels that share a scale.
        symmetric: No zero point is stored.
        span: Tokens of a channel that share a scale, where those do and not the channels of a token; else 0.
    """

    width: int
    bits: int = DENSE
    group: int = 0
    symmetric: bool = True
    span: int = 0

    @property
    def groups(self) -> int:
        return 1 if self.bits == DENSE or self.span else self.width // self.group

    @property
    def row(self) -> Deal:
        """How a token's channels are dealt to planes: every group is whole planes of one run of channels."""
        planes = 16 // self.bits
        chunks = max(1, self.groups // planes)
        if self.width // chunks // planes >= STEP:
            return Deal(16, self.bits, chunks)
        return Deal(8, self.bits, max(1, self.groups * self.bits // 8))

    @property
    def column(self) -> Deal:
        """How 64 tokens of a channel are dealt to planes."""
        return Deal(16 if TILE * self.bits // 16 >= STEP else 8, self.bits, 1)

    def objection(self) -> str:
        """Why no kernel reads this, or nothing."""
        if self.bits == DENSE:
            return ""
        if self.bits not in BITS:
            return f"codes of {self.bits} bits"
        if self.span:
            return "" if self.span in (TILE // 2, TILE) and self.width % 32 == 0 else f"a scale for {self.span} tokens of a channel"
        words = self.width // self.row.chunks // self.row.planes
        if words < STEP or self.group < STEP or self.width & (self.width - 1) or self.group & (self.group - 1):
            return f"groups of {self.group} of {self.width} channels in {self.bits} bits"
        return ""


@dataclass(frozen=True)
class Deal:
    """Words of ``word`` bits, of codes of ``bits``, in ``chunks`` runs that lie one after the other."""

    word: int
    bits: int
    chunks: int

    @property
    def planes(self) -> int:
        return self.word // self.bits

    @property
    def dtype(self) -> torch.dtype:
        return torch.int16 if self.word == 16 else torch.int8


def pack_rows(codes: Tensor, form: Format) -> Tensor:
    """``[..., width]`` (uint8) → words ``[..., width · bits / word]``."""
    deal = form.row
    return _joined(torch.unflatten(codes.to(torch.int32), -1, (deal.chunks, deal.planes, -1)), -2, deal).flatten(-2)


def unpack_rows(words: Tensor, form: Format) -> Tensor:
    """The inverse of :func:`pack_rows`."""
    deal = form.row
    return _planes(torch.unflatten(words, -1, (deal.chunks, 1, -1)), -2, deal).flatten(-3)


def pack_columns(codes: Tensor, form: Format) -> Tensor:
    """``[..., T, width]`` (uint8), T a multiple of 64 → words ``[..., T / 64, width, 64 · bits / word]``."""
    deal = form.column
    dealt = torch.unflatten(codes.to(torch.int32), -2, (-1, deal.planes, TILE // deal.planes))
    return _joined(dealt, -3, deal).transpose(-1, -2).contiguous()


def unpack_columns(words: Tensor, form: Format) -> Tensor:
    """The inverse of :func:`pack_columns`: ``[..., T, width]``."""
    return _planes(words.transpose(-1, -2).unsqueeze(-3), -3, form.column).flatten(-4, -2)


def _joined(dealt: Tensor, axis: int, deal: Deal) -> Tensor:
    """Planes along ``axis`` in one word each."""
    return (dealt << _shifts(dealt, axis, deal)).sum(axis, dtype=torch.int32).to(deal.dtype)


def _planes(words: Tensor, axis: int, deal: Deal) -> Tensor:
    """Words with an axis of length 1 where their planes are to be."""
    return ((words.to(torch.int32) >> _shifts(words, axis, deal)) & ((1 << deal.bits) - 1)).to(torch.uint8)


def _shifts(like: Tensor, axis: int, deal: Deal) -> Tensor:
    shape = [1] * like.ndim
    shape[axis] = -1
    return (torch.arange(deal.planes, device=like.device, dtype=torch.int32) * deal.bits).view(shape)
