"""How many directions keys and values really use: eigenvalues of their covariance, and what is read off them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.caches.heads import by_group

SHARES = (0.90, 0.95, 0.99)


@dataclass
class Spread:
    """Count, sum and second moment of one layer's tokens, all KV heads side by side; tokens may come in any number of parts.

    Attributes:
        heads: KV heads. total: ``[H·D]``. outer: ``[H·D, H·D]``. Both in float64.
    """

    heads: int
    count: int = 0
    total: Tensor | None = None
    outer: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """``x`` ``[B, H, T, D]``."""
        rows = by_group(x, self.heads).flatten(0, 2).double()  # [B·T, H·D]
        total, outer = rows.sum(0), rows.T @ rows
        self.total = total if self.total is None else self.total + total
        self.outer = outer if self.outer is None else self.outer + outer
        self.count += len(rows)

    def joined(self, *, centred: bool) -> Tensor:
        """Eigenvalues ``[1, H·D]`` of all heads together, falling; about the mean, or (not ``centred``) about zero."""
        return _eigenvalues(self._moment(centred)[None])

    def by_head(self, *, centred: bool) -> Tensor:
        """Eigenvalues ``[H, D]`` of each head by itself."""
        moment, width = self._moment(centred), self._moment(centred).shape[0] // self.heads
        blocks = [moment[h * width : (h + 1) * width, h * width : (h + 1) * width] for h in range(self.heads)]
        return _eigenvalues(torch.stack(blocks))

    def _moment(self, centred: bool) -> Tensor:
        if self.total is None or self.outer is None:
            raise ValueError("no tokens were seen")
        mean = self.total / self.count
        return self.outer / self.count - mean[:, None] * mean if centred else self.outer / self.count


def _eigenvalues(matrices: Tensor) -> Tensor:
    rising: Tensor = torch.linalg.eigvalsh(matrices)
    return rising.flip(-1).clamp_min(0)


def effective_rank(values: Tensor) -> Tensor:
    """``exp(−Σ p ln p)`` with p the eigenvalues ``[..., W]`` over their sum: from 1 to W, ``[...]``.

    Roy and Vetterli (EUSIPCO 2007), "The effective rank: a measure of effective dimensionality", of the covariance
    matrix, whose singular values are its eigenvalues. No variance at all has effective rank 0.
    """
    total = values.sum(-1)
    p = values / total.clamp_min(torch.finfo(values.dtype).tiny)[..., None]
    return torch.where(total > 0, torch.special.entr(p).sum(-1).exp(), 0.0)


def participation_ratio(values: Tensor) -> Tensor:
    """``(Σ λ)² / Σ λ²`` of eigenvalues ``[..., W]``: how many equal ones would be spread alike; 0 of no variance."""
    squares = values.square().sum(-1)
    return values.sum(-1).square() / squares.clamp_min(torch.finfo(values.dtype).tiny)


def kept_share(values: Tensor, rank: int) -> Tensor:
    """Share of the variance in the first ``rank`` components of eigenvalues ``[..., W]``; 1 where there is none."""
    total = values.sum(-1)
    return torch.where(total > 0, values[..., :rank].sum(-1) / total.clamp_min(torch.finfo(values.dtype).tiny), 1.0)


def components_for(values: Tensor, share: float) -> Tensor:
    """The fewest components that hold ``share`` of the variance of eigenvalues ``[..., W]``, up to rounding."""
    sums = values.cumsum(-1)
    return (sums < (share - 1e-12) * sums[..., -1:]).sum(-1) + 1


def figures(values: Tensor, ranks: Sequence[int]) -> dict[str, Tensor]:
    """All of it by name, ``[...]`` each."""
    found = {"effective_rank": effective_rank(values), "participation": participation_ratio(values)}
    found |= {f"components_{share:.0%}".rstrip("%"): components_for(values, share) for share in SHARES}
    return found | {f"share_{rank}": kept_share(values, rank) for rank in ranks}
