"""A head group's orthonormal basis cut to a rank, and how coefficients in it are stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.caches.heads import by_group, by_head
from kvbench.caches.layer_context import LayerContext
from kvbench.caches.ledger import Part
from kvbench.caches.packing import Scheme
from kvbench.caches.ranks import rank_by_energy, side_name
from kvbench.caches.stores import DenseStore, LowRankStore, QuantStore


@dataclass(frozen=True)
class Cut:
    """How a basis is cut: the parameters that all low-rank methods share.

    Attributes:
        basis: ``pca`` or ``random``.
        rank: Columns per KV head; a group of g heads has g times as many. Not read where ``energy`` is given.
        energy: Share of the second moment kept, by all layers in the mean or (``per_layer``) by each.
        bits: Of coefficients; 0 keeps them dense.
        rotated: Mix the coefficients by a Hadamard matrix, so that a token's share one scale well.
    """

    basis: str = "pca"
    rank: int = 0
    energy: float | None = None
    per_layer: bool = False
    bits: int = 0
    rotated: bool = False

    def projection(self, context: LayerContext, side: str) -> Projection:
        """The basis of ``side`` (as in :func:`kvbench.caches.ranks.cut_artefacts`) for this layer, cut."""
        full = context.artefacts[side_name(side, self.basis)]  # [G, g·D, g·D]
        columns = self.rank * full.shape[1] // context.head_dim
        if self.energy is not None:
            spectra = context.artefacts[side_name(side, "spectra")]
            columns = rank_by_energy(spectra, context.index, self.energy, per_layer=self.per_layer, bits=self.bits)
        basis = full[:, :, :columns]
        if self.rotated:
            basis = basis @ hadamard(columns).to(basis)
        name = f"{side_name(side, self.basis)} {columns}{' rotated' if self.rotated else ''}"
        return Projection(basis, Scheme(self.bits, columns) if self.bits else None, name)


@dataclass(frozen=True)
class Projection:
    """A cut basis.

    Attributes:
        basis: ``[G, g·D, r]``, orthonormal columns, for G groups of g neighbouring KV heads.
        coefficients: How they are quantised; ``None`` keeps them dense.
        name: Tells it from others of the same layer; empty where it stands for itself alone.
    """

    basis: Tensor
    coefficients: Scheme | None = None
    name: str = ""

    @property
    def rank(self) -> int:
        """Columns of one group's basis."""
        return self.basis.shape[2]

    def heads(self, kv_heads: int) -> int:
        """KV heads in a group."""
        return kv_heads // self.basis.shape[0]

    def per_head(self, kv_heads: int) -> Tensor:
        """``[Hkv, D, r]``: the rows that give each head its channels."""
        return torch.unflatten(self.basis, 1, (self.heads(kv_heads), -1)).flatten(0, 1)


class CoefficientStore:
    """Keys or values of one layer as coefficients ``[B, G, T, r]``.

    Args:
        name: ``key`` or ``value``. projection: The basis. kv_heads: Of the layer. dtype: Of dense coefficients and of scales.
    """

    def __init__(self, name: str, projection: Projection, kv_heads: int, dtype: torch.dtype) -> None:
        self.name, self.projection, self.heads = name, projection, projection.heads(kv_heads)
        label, scheme = f"{name} coefficients", projection.coefficients
        inner = DenseStore(label, dtype) if scheme is None else QuantStore(label, scheme, dtype)
        self.store = LowRankStore(inner, projection.basis)

    @property
    def length(self) -> int:
        return self.store.length

    def append(self, x: Tensor) -> None:
        """Project and store ``x`` ``[B, Hkv, n, D]``."""
        self.store.append(by_group(x, self.heads))

    def append_coefficients(self, c: Tensor) -> None:
        """Store ``c`` ``[B, G, n, r]`` that were projected elsewhere."""
        self.store.inner.append(c)

    def read(self, dtype: torch.dtype) -> Tensor:
        """Coefficients ``[B, Hkv, T, r]``: a group's are each of its heads'."""
        c = self.store.read(dtype)
        return c if self.heads == 1 else c[:, :, None].expand(-1, -1, self.heads, -1, -1).flatten(1, 2)

    def rebuilt(self, dtype: torch.dtype) -> Tensor:
        """``[B, Hkv, T, D]``, the tokens themselves as far as the basis holds them."""
        return by_head(self.store.expand(self.store.read(dtype)), self.heads)

    def part(self) -> Part:
        """The basis, for the list of artefacts."""
        basis = self.projection.basis
        return Part(f"{self.name} basis", basis, basis.numel() * basis.element_size())


def expand(y: Tensor, per_head: Tensor) -> Tensor:
    """Weighed coefficients ``[B, Hq, m, r]`` → ``[B, Hq, m, D]`` by bases ``[Hkv, D, r]``."""
    b, heads, m, r = y.shape
    rows = y.reshape(b, per_head.shape[0], -1, r)
    return (rows @ per_head.to(y.dtype).transpose(1, 2)).reshape(b, heads, m, -1)


def project_queries(q: Tensor, per_head: Tensor) -> Tensor:
    """Queries ``[B, Hq, m, D]`` → ``[B, Hq, m, r]``: ``q · (B c) = (Bᵀ q) · c``, so no key is rebuilt."""
    b, heads, m, d = q.shape
    rows = q.reshape(b, per_head.shape[0], -1, d)
    return (rows @ per_head.to(q.dtype)).reshape(b, heads, m, -1)


def hadamard(size: int) -> Tensor:
    """An orthogonal matrix ``[size, size]`` (float64) that spreads each column over all rows.

    Sylvester's Hadamard matrix for the largest power of two in ``size``, times (Kronecker) the discrete cosine
    transform for the odd factor that is left; Palu's code takes tabulated Hadamard matrices there.
    """
    power = size & -size
    odd = size // power
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < power:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)), 0)
    steps = torch.arange(odd, dtype=torch.float64)
    cosines = torch.cos(torch.pi * (steps[None] + 0.5) * steps[:, None] / odd) * (2 / odd) ** 0.5
    cosines[0] = odd**-0.5
    return torch.kron(matrix / power**0.5, cosines)
