"""An attention module's projections with a value basis folded in; :mod:`kvbench.caches.folding` makes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kvbench.caches.ledger import Part


@dataclass(frozen=True)
class Fold:
    """One module's projections with a basis folded in.

    Attributes:
        v_proj: hidden → ``[G·r]``, filled with rows of zeros up to whole heads, since the module views its output by heads.
        o_proj: ``[Hq·r]`` → hidden.
        groups, rank: G and r.
        tensors: The weights and biases of both.
    """

    v_proj: nn.Linear
    o_proj: nn.Linear
    groups: int
    rank: int
    tensors: tuple[Tensor, ...]

    def coefficients(self, values: Tensor) -> Tensor:
        """What the module made of ``v_proj``'s output, ``[B, P, n, D]`` with P·D ≥ G·r, as ``[B, G, n, r]``."""
        flat = values.transpose(1, 2).flatten(2)[..., : self.groups * self.rank]
        return torch.unflatten(flat, 2, (self.groups, self.rank)).transpose(1, 2)

    def parts(self) -> Iterator[Part]:
        """The folded weights, for the list of artefacts: they stand in for the module's own."""
        for tensor in self.tensors:
            yield Part("folded projections", tensor, tensor.nbytes)
