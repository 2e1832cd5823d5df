"""Vectors as codes of their randomly rotated directions (TurboQuant, arXiv 2504.19874).

A stored token reads as coefficients ``z`` in a frame that all tokens share: ``x̂ = z M``. With the rotation ``Π``
and the Gaussian sketch ``S`` (both ``[D, D]``) that is, for a vector of norm ``n`` and direction ``u = x/n``,

- MSE quantiser (Algorithm 1): ``z = n · c[idx]``, ``idx_j`` the centroid nearest to ``(Π u)_j``, ``M = Π``;
- with its residual step (Algorithm 2): one bit fewer for the codes, and of the residual ``r = x − n · c[idx] Π`` its norm and
  the signs of ``S r``; ``z = [n · c[idx], √(π/2)/D · ‖r‖ · sign(S r)]``, ``M = [Π; S]``. Over the draw of ``S`` the estimate
  of any inner product is unbiased.

So scores are ``(q Mᵀ) zᵀ`` and outputs ``(p z) M``: the query is turned, never the keys, and the values' weighted sum is turned once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import pi, sqrt

import torch
from torch import Tensor

from kvbench.caches.attend import attend
from kvbench.caches.buffers import TokenBuffer
from kvbench.caches.codebook import lloyd_max
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.ledger import Part
from kvbench.caches.packing import pack, unpack
from kvbench.caches.stores import BufferedStore, DenseStore, Store

FLUSH = 32
"""Tokens that turn into codes together where the newest are kept dense."""


@lru_cache(maxsize=16)
def draw_frame(dim: int, sketch: bool, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[D, D]`` rotation, uniform over the orthogonal group; with ``sketch``, ``[2D, D]``: i.i.d. ``N(0, 1)`` rows below it.

    Drawn on the host in float64, so that a seed means the same on every device. One draw serves all layers,
    heads, keys and values, as the paper's algorithms hold one of each globally.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(2 * dim, dim, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal[:dim])
    rotation = q * r.diagonal().sign()  # the signs make the law uniform, whatever convention the factorisation has
    return (torch.cat((rotation, normal[dim:])) if sketch else rotation).to(device, dtype)


@lru_cache(maxsize=32)
def codebook(dim: int, bits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The centroids, rising, ``[2^bits]``."""
    return torch.tensor(lloyd_max(dim, bits), dtype=dtype, device=device)


class TurboStore(BufferedStore):
    """Each token alone: its norm, a code per rotated coordinate and, with a residual step, signs and a second norm.

    ``read`` gives coefficients ``[B, H, T, W]``, W = D, or 2D with a residual step; ``project`` and ``expand`` go into their
    frame and back.

    Args:
        name: ``keys`` or ``values``.
        bits: Bits per coordinate in all, the residual's one included.
        residual: Spend one of them on the residual step; with 1 bit that is QJL (arXiv 2406.03482) alone.
        frame: ``[D, D]`` or ``[2D, D]`` from :func:`draw_frame`, an artefact.
        dtype: Format of the norms.
    """

    def __init__(self, name: str, bits: int, residual: bool, frame: Tensor, dtype: torch.dtype) -> None:
        dim = frame.shape[1]
        self.bits, self.dim = bits - residual, dim
        self.rotation, self.sketch = frame[:dim], frame[dim : 2 * dim]
        self.frame = frame if residual else self.rotation
        self.centroids = codebook(dim, self.bits, frame.dtype, frame.device) if self.bits else None
        self.codes = TokenBuffer(f"{name} codes", torch.uint8) if self.bits else None
        self.norms = TokenBuffer(f"{name} norms", dtype) if self.bits else None
        self.signs = TokenBuffer(f"{name} residual signs", torch.uint8) if residual else None
        self.residual_norms = TokenBuffer(f"{name} residual norms", dtype) if residual else None

    def append(self, x: Tensor) -> None:
        residual = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.codes is not None and self.norms is not None:
            norms = residual.norm(dim=-1, keepdim=True)
            codes = self._nearest(residual / torch.where(norms == 0, 1.0, norms))
            norms = norms.to(self.norms.dtype)
            self.codes.append(pack(codes, self.bits))
            self.norms.append(norms)
            residual = residual - self._coded(codes, norms, residual.dtype) @ self.rotation.to(residual)
        if self.signs is not None and self.residual_norms is not None:
            sketched = residual @ self.sketch.to(residual).T
            self.signs.append(pack((sketched >= 0).to(torch.uint8), 1))
            self.residual_norms.append(residual.norm(dim=-1, keepdim=True))

    def _nearest(self, directions: Tensor) -> Tensor:
        """Code of each rotated coordinate, uint8: the centroid whose midpoints it lies between."""
        centroids = self._table(directions.dtype, directions.device)
        return torch.bucketize(directions @ self.rotation.to(directions).T, (centroids[1:] + centroids[:-1]) / 2).to(torch.uint8)

    def _coded(self, codes: Tensor, norms: Tensor, dtype: torch.dtype) -> Tensor:
        """``n · c[idx]``, ``[B, H, T, D]``."""
        return self._table(dtype, codes.device).index_select(0, codes.flatten().int()).view(codes.shape) * norms.to(dtype)

    def _table(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        if self.centroids is None:
            raise RuntimeError("one bit with a residual step leaves none for codes")
        return self.centroids.to(device, dtype)

    def read(self, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        parts = []
        if self.codes is not None and self.norms is not None:
            parts.append(self._coded(unpack(self.codes.view(), self.bits), self.norms.view(), wide))
        if self.signs is not None and self.residual_norms is not None:
            signs = unpack(self.signs.view(), 1).to(wide) * 2 - 1
            sketched = signs * (self.residual_norms.view().to(wide) * (sqrt(pi / 2) / self.dim))
            parts += [sketched] if parts else [torch.zeros_like(sketched), sketched]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).to(dtype)

    def exact(self, x: Tensor) -> Tensor:
        """``x`` ``[B, H, n, D]`` in the frame that ``read`` uses, unquantised: its rotated coordinates, and nothing of the sketch."""
        wide = torch.promote_types(x.dtype, torch.float32)
        turned = x.to(wide) @ self.rotation.to(x.device, wide).T
        return torch.nn.functional.pad(turned, (0, self.frame.shape[0] - self.dim)).to(x.dtype)

    def project(self, q: Tensor) -> Tensor:
        """``[B, H, n, D]`` → ``[B, H, n, W]``, such that its products with what ``read`` gives are those with the tokens."""
        wide = torch.promote_types(q.dtype, torch.float32)
        return (q.to(wide) @ self.frame.to(q.device, wide).T).to(q.dtype)

    def expand(self, y: Tensor) -> Tensor:
        """``[B, H, n, W]`` → ``[B, H, n, D]``: coefficients, or a weighted sum of them, as vectors."""
        wide = torch.promote_types(y.dtype, torch.float32)
        return (y.to(wide) @ self.frame.to(y.device, wide)).to(y.dtype)

    def buffers(self) -> list[TokenBuffer]:
        return [b for b in (self.codes, self.norms, self.signs, self.residual_norms) if b is not None]


class TurboLayer(LayerCache):
    """Keys and values in TurboQuant's codes, each token as it comes; its own query reads it quantised too.

    With ``recent``, the newest ``recent`` to ``recent + FLUSH`` tokens are dense and the oldest of them become codes ``FLUSH`` at a
    time. A dense token is read in the codes' frame, where it is exact: the rotation only turns it.

    Args:
        keys, values: (bits, residual step) of each.
        recent: Tokens.
        frame: From :func:`draw_frame`.
    """

    def __init__(self, context: LayerContext, keys: tuple[int, bool], values: tuple[int, bool], recent: int, frame: Tensor) -> None:
        super().__init__(context)
        self.frame, self.recent = frame, recent
        self.codes = TurboStore("keys", *keys, frame, context.dtype), TurboStore("values", *values, frame, context.dtype)
        self.dense = (DenseStore("recent keys", context.dtype), DenseStore("recent values", context.dtype)) if recent else ()

    @property
    def length(self) -> int:
        return self.codes[0].length + sum(store.length for store in self.dense[:1])

    def compress(self, prompt: TokenView) -> None:
        old = max(0, prompt.keys.shape[2] - self.recent)
        for side, x in enumerate((prompt.keys, prompt.values)):
            if old:
                self.codes[side].append(x[:, :, :old])
            if self.dense:
                self.dense[side].append(x[:, :, old:])

    def append(self, keys: Tensor, values: Tensor) -> None:
        for side, x in enumerate((keys, values)):
            if self.dense:
                self.dense[side].append(x)
            else:
                self.codes[side].append(x)

    def stable_for(self) -> int | None:
        return self.recent + FLUSH - self.dense[0].length if self.dense else None

    def settle(self) -> None:
        if self.stable_for() == 0:
            for codes, dense in zip(self.codes, self.dense, strict=True):
                codes.append(dense.buffer.view()[:, :, :FLUSH])
                dense.drop_front(FLUSH)

    def _coefficients(self, side: int, dtype: torch.dtype) -> Tensor:
        """``[B, Hkv, length, W]`` of the keys (side 0) or the values (side 1)."""
        codes = self.codes[side]
        held = [codes.read(dtype)] if codes.length else []
        if self.dense and self.dense[side].length:
            held.append(codes.exact(self.dense[side].read(dtype)))
        return held[0] if len(held) == 1 else torch.cat(held, 2)

    def attend(self, q: Tensor) -> Tensor:
        keys, values = (self._coefficients(side, q.dtype) for side in (0, 1))
        wide, dim, rows = keys.shape[3], q.shape[3], q.shape[1] // keys.shape[1] * q.shape[2]
        if rows * (wide - dim) > wide * dim:  # many queries, a sketch: the keys are rebuilt for less than it costs to read them longer
            keys = self.codes[0].expand(keys)
        else:
            q = self.codes[0].project(q)
        return self.codes[1].expand(attend(q, keys, values, self.scaling))

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        keys, values = (self.codes[side].expand(self._coefficients(side, dtype)) for side in (0, 1))
        return keys, values

    def stores(self) -> Iterator[Store]:
        yield from self.codes
        yield from self.dense

    def artefacts(self) -> Iterator[Part]:
        """Frame and codebooks, which all layers share: the first layer counts them for all."""
        shared = {"rotation and sketch": self.frame, "key codebook": self.codes[0].centroids, "value codebook": self.codes[1].centroids}
        for name, tensor in shared.items():
            if tensor is not None:
                yield Part(name, tensor, tensor.nbytes if self.context.index == 0 else 0)
