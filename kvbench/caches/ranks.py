"""Ranks as the user gives them: a number or retained energy, and what fits. Importable without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PAPER_GROUP = 4
"""KV heads that Palu decomposes together (arXiv 2407.21118, §4.1)."""
_DUST = 1e-12
"""A share that is reached to within rounding is reached."""


def heads_in_group(asked: int, kv_heads: int) -> int:
    """How many of ``kv_heads`` share a basis: ``asked`` at most; 0 is the paper's 4, or the most below it that divide them.

    Raises:
        ValueError: ``asked`` does not divide the KV heads; names the nearest that does.
    """
    if asked == 0:
        return max(g for g in range(1, PAPER_GROUP + 1) if kv_heads % g == 0)
    heads = min(asked, kv_heads)
    if kv_heads % heads:
        near = min((d for d in range(1, kv_heads + 1) if kv_heads % d == 0), key=lambda d: abs(d - asked))
        raise ValueError(f"group_heads={asked} does not divide the KV heads, {kv_heads}; the nearest that does is {near}")
    return heads


def check_energy(energy: float | None, basis: str, **ranks: int) -> None:
    """Refuse a share of energy beside a rank, or of a basis that has no eigenvalues.

    Raises:
        ValueError: names the parameter and what to give instead.
    """
    for name, rank in ranks.items():
        if energy is not None and rank:
            raise ValueError(f"{name}={rank} and energy={energy} both set the rank; give one of them")
    if basis == "random" and energy is not None:
        raise ValueError(f"energy={energy} is read off eigenvalues, which basis=random has none of; give rank instead")


def check_rank(head_dim: int, bits: int = 0, heads: int = 1, **ranks: int) -> None:
    """Refuse more columns than the head has, and codes of one token that do not fill whole bytes.

    Raises:
        ValueError: names the parameter and the nearest valid value.
    """
    per = codes_per_block(bits)
    for name, rank in ranks.items():
        if rank > head_dim:
            raise ValueError(f"{name}={rank} is above the head size; the largest is {head_dim}")
        if heads * rank % per:
            near = min((r for r in range(1, head_dim + 1) if heads * r % per == 0), key=lambda r: (abs(r - rank), r), default=head_dim)
            if bits == 4 and heads == 1:
                raise ValueError(f"{name}={rank} is odd, and two 4-bit codes fill a byte; the nearest even rank is {near}")
            raise ValueError(f"{name}={rank}: {heads * rank} codes of {bits} bits do not fill whole bytes; the nearest that does is {near}")


def cut_artefacts(basis: str, energy: float | None, *sides: str) -> tuple[str, ...]:
    """Names of the calibrated bases of ``sides`` (``value``, ``projected_key/4``), and of the eigenvalues where those choose the rank."""
    kinds = (basis,) if energy is None else (basis, "spectra")
    return tuple(side_name(side, kind) for side in sides for kind in kinds)


def side_name(side: str, kind: str) -> str:
    """``projected_key/4`` and ``pca`` → ``projected_key_pca/4``."""
    stem, slash, group = side.partition("/")
    return f"{stem}_{kind}{slash}{group}"


def codes_per_block(bits: int) -> int:
    """Codes that end on a byte together; dense numbers (0) stand alone."""
    return {0: 1, 8: 1, 4: 2, 3: 8, 2: 4}[bits]


def rank_by_energy(spectra: Tensor, layer: int, energy: float, *, per_layer: bool, bits: int = 0) -> int:
    """The smallest rank that keeps ``energy`` of the second moment, rounded up to whole bytes of codes.

    Args:
        spectra: Eigenvalues ``[L, G, W]``, falling. layer: This one.
        energy: Share kept, (0, 1], over all heads of a layer together.
        per_layer: Each layer keeps that share; else the mean over layers does, and all have the same rank.
        bits: Of the coefficients; 0 is dense.
    """
    sums = spectra.sum(1).cumsum(-1)  # [L, W]
    kept = sums / sums[:, -1:]
    curve = kept[layer] if per_layer else kept.mean(0)
    rank, per, width = int((curve < energy - _DUST).sum()) + 1, codes_per_block(bits), spectra.shape[-1]
    return min(-(-rank // per) * per, width // per * per)
