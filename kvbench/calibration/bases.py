"""Bases of keys and values: eigenvectors of their second moment on a text, and a seeded random control.

Names are ``SIDE_KIND`` or ``SIDE_KIND/g``, for bases shared by groups of g KV heads (0: as many as the paper's 4
and the model allow).

Sides: ``value`` and ``key`` as the cache gets them (keys after RoPE); ``projected_value`` and ``projected_key`` as the
projections' weights give them, before RoPE and before the bias, which is what Palu (arXiv 2407.21118, §3.1) decomposes.
Kinds: ``pca`` ``[G, g·D, g·D]``, orthonormal columns, the largest eigenvalue first; ``spectra`` ``[L, G, g·D]``, those
eigenvalues for all layers; ``random`` ``[G, g·D, g·D]``, an orthonormal draw.

The moment is taken about zero. Its leading eigenvectors are then the best orthonormal basis of the outputs, and the
same subspace as Palu's whitened SVD of the weight W: with X the inputs and S Sᵀ = X Xᵀ, the left singular vectors of
W S are the eigenvectors of W X Xᵀ Wᵀ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvbench.caches.heads import by_group, projection_bias
from kvbench.caches.needs import Needs
from kvbench.caches.ranks import heads_in_group
from kvbench.calibration.artefacts import load_tensors, save_tensors

if TYPE_CHECKING:
    from kvbench.caches.cache import Artefacts, Geometry
    from kvbench.caches.layer import TokenView
    from kvbench.calibration.source import Source
    from kvbench.models.shape import Shape

_NAME = re.compile(r"(value|key|projected_value|projected_key)_(pca|spectra|random)(?:/(\d+))?")


@dataclass(frozen=True)
class Basis:
    """A name taken apart: what is decomposed, by which kind of basis, over how many KV heads together."""

    side: str
    kind: str
    heads: int

    @classmethod
    def parse(cls, name: str, kv_heads: int) -> Basis:
        """``value_pca/0`` → the values' PCA over as many heads as fit a model of ``kv_heads``."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError(f"'{name}' is not the name of a basis")
        side, kind, heads = found.groups()
        return cls(side, kind, 1 if heads is None else heads_in_group(int(heads), kv_heads))

    @property
    def moment(self) -> str:
        """Bases of one moment are kept in one file."""
        return f"{self.side.replace('_', '-')}-{self.heads}"


def makes(name: str) -> bool:
    """Whether ``name`` is a basis or its eigenvalues."""
    return _NAME.fullmatch(name) is not None


def stand_in(name: str, shape: Shape) -> Tensor | None:
    """An identity of the right size; ``None`` for eigenvalues, which decide a rank."""
    basis = Basis.parse(name, shape.kv_heads)
    if basis.kind == "spectra":
        return None
    return torch.eye(basis.heads * shape.head_dim).expand(shape.kv_heads // basis.heads, -1, -1)


def provide(names: Sequence[str], source: Source) -> Artefacts:
    """The bases of ``names``; one pass over the text serves all that are not kept from before.

    Raises:
        ModelError: a kept calibration is of other weights or cannot be read.
    """
    geometry = source.geometry
    wanted = {name: Basis.parse(name, geometry.kv_heads) for name in names}
    fitted = _fitted({b.moment: b for b in wanted.values() if b.kind != "random"}, source)
    made: dict[str, Any] = {}
    for name, basis in wanted.items():
        if basis.kind == "random":
            made[name] = [_random(basis, geometry, layer) for layer in range(geometry.layers)]
        elif basis.kind == "pca":
            stacked = fitted[basis.moment]["vectors"]
            made[name] = [stacked[i].to(geometry.devices[i], geometry.dtype) for i in range(geometry.layers)]
        else:
            made[name] = [fitted[basis.moment]["values"]] * geometry.layers
    return made


def _fitted(moments: dict[str, Basis], source: Source) -> dict[str, dict[str, Tensor]]:
    """Moment → ``vectors`` ``[L, G, W, W]`` and ``values`` ``[L, G, W]`` (falling), on the CPU: read where kept, fitted and kept else."""
    files = {name: source.file(f"basis-{name}") for name in moments}
    held = {name: load_tensors(file, source.weights_hash) for name, file in files.items() if file is not None and file.exists()}
    missing = {name: basis for name, basis in moments.items() if name not in held}
    if missing:
        for name, sums in _sums(missing, source).items():
            held[name] = _eigen(sums, torch.promote_types(source.geometry.dtype, torch.float32))
            if (file := files[name]) is not None:
                save_tensors(file, held[name], source.weights_hash or "")
    return held


def _sums(moments: dict[str, Basis], source: Source) -> dict[str, list[Tensor]]:
    """Σ x xᵀ over the text, ``[G, W, W]`` in float64, one a layer."""
    sums: dict[str, list[Tensor]] = {}
    for views in source.windows(Needs(), "calibrating bases"):
        for name, basis in moments.items():
            outer = [_outer(by_group(_side(basis.side, view, source.geometry), basis.heads)) for view in views]
            sums[name] = [a + b for a, b in zip(sums[name], outer, strict=True)] if name in sums else outer
    return sums


def _outer(x: Tensor) -> Tensor:
    """``x`` ``[1, G, T, W]`` → ``[G, W, W]``."""
    rows = x[0].double()
    return rows.transpose(1, 2) @ rows


def _side(side: str, view: TokenView, geometry: Geometry) -> Tensor:
    """What is decomposed, ``[1, Hkv, T, D]``."""
    if not side.startswith("projected_"):
        return view.keys if side == "key" else view.values
    module = geometry.modules[view.layer.index] if geometry.modules else None
    if side == "projected_value":
        x, bias = view.values, projection_bias(module, "v_proj", geometry.head_dim)
    else:
        if geometry.rope is None:
            raise ValueError("this model has no rotary embedding to undo")
        x, bias = geometry.rope.unrotate(view.keys, 0), projection_bias(module, "k_proj", geometry.head_dim)
    return x if bias is None else x - bias[:, None]


def _eigen(sums: list[Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Eigenvectors in ``dtype``, eigenvalues in float64, the largest first."""
    pairs = [torch.linalg.eigh(s) for s in sums]
    vectors = torch.stack([vectors.flip(-1).to("cpu", dtype) for _, vectors in pairs])
    values = torch.stack([values.flip(-1).clamp_min(0).cpu() for values, _ in pairs])
    return {"vectors": vectors, "values": values}


def _random(basis: Basis, geometry: Geometry, layer: int) -> Tensor:
    """A draw of its own for each layer and side."""
    seed = layer + 1000 * ("value", "key", "projected_value", "projected_key").index(basis.side)
    generator = torch.Generator().manual_seed(seed)
    width, groups = basis.heads * geometry.head_dim, geometry.kv_heads // basis.heads
    draw = torch.randn(groups, width, width, generator=generator, dtype=torch.float64)
    orthonormal: Tensor = torch.linalg.qr(draw)[0]
    return orthonormal.to(geometry.devices[layer], geometry.dtype)
