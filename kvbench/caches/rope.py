"""A model's rotary embedding, applied, undone and averaged (RoFormer, arXiv 2104.09864, in the half-split layout)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Rope:
    """Cosines and sines as the model itself computes them.

    Args:
        module: The model's rotary embedding, called as ``module(x, position_ids) → (cos, sin)``.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def tables(self, first: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """``cos``, ``sin`` ``[count, R]`` (R ≤ head size) at positions ``first…`` in at least float32."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        positions = torch.arange(first, first + count, device=like.device)[None]
        cos, sin = self.module(like.new_empty(1, dtype=dtype), positions)
        return cos[0].to(dtype), sin[0].to(dtype)

    def rotate(self, x: Tensor, first: int) -> Tensor:
        """``x`` ``[B, H, n, D]`` rotated as the model does at positions ``first…``, in at least float32; undoes :meth:`unrotate`."""
        return self.turn(x, *self.tables(first, x.shape[2], x))

    @staticmethod
    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``x`` ``[B, H, n, D]`` rotated by rows of :meth:`tables`, any that broadcast with ``[B, H, n, R]``."""
        wide = x.to(cos.dtype)
        flat, rest = wide[..., : cos.shape[-1]], wide[..., cos.shape[-1] :]
        return torch.cat((flat * cos + half_turn(flat) * sin, rest), -1)

    def unrotate(self, x: Tensor, first: int) -> Tensor:
        """``x`` ``[B, H, n, D]`` at positions ``first…`` as it was before rotation, in at least float32.

        Each channel pair was turned by an angle and scaled by s (``cos² + sin² = s²``): the inverse turns back and divides by s².
        """
        cos, sin = self.tables(first, x.shape[2], x)
        wide = x.to(cos.dtype)
        turned, rest = wide[..., : cos.shape[-1]], wide[..., cos.shape[-1] :]
        back = (turned * cos - half_turn(turned) * sin) / (cos**2 + sin**2)
        return torch.cat((back, rest), -1)

    def mean_rotation(self, first: int, count: int, like: Tensor) -> Tensor:
        """The average over ``count`` positions of the matrix R with ``rotated = R x``, ``[D, D]``; D is ``like``'s last axis."""
        cos, sin = (t.mean(0) for t in self.tables(first, count, like))
        size = like.shape[-1]
        matrix = torch.eye(size, dtype=cos.dtype, device=cos.device)
        turned = half_turn(torch.eye(cos.shape[-1], dtype=cos.dtype, device=cos.device)).T
        r = cos.shape[-1]
        matrix[:r, :r] = torch.diag(cos) + sin[:, None] * turned
        return matrix


def half_turn(x: Tensor) -> Tensor:
    """A quarter turn of every pair (i, i + R/2) of the last axis."""
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)
