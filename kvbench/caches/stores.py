"""How one layer's keys, or its values, are stored for a run of tokens: dense, quantised or low-rank.

All stores speak the same four verbs (``append``, ``read``, ``keep``, ``parts``), so that a layer is put
together from them: KIVI is a quantised store and a dense one behind it, a hybrid is three.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from kvbench.caches.buffers import TokenBuffer
from kvbench.caches.ledger import Part
from kvbench.caches.packing import Scheme, dequantise, pack, quantise, unpack


class Store(Protocol):
    """Keys or values of some tokens of one layer."""

    @property
    def length(self) -> int:
        """Tokens held."""

    def append(self, x: Tensor) -> None:
        """Store ``x`` ``[B, H, n, W]`` behind what is there."""

    def read(self, dtype: torch.dtype) -> Tensor:
        """``[B, H, length, W]`` as attention reads it."""

    def keep(self, index: Tensor) -> None:
        """Keep the tokens at ``index`` ``[B, H, m]``."""

    def reorder(self, rows: Tensor) -> None:
        """Select rows of the batch."""

    def parts(self) -> Iterator[Part]:
        """Every tensor held."""


class DenseStore:
    """Tokens in a plain number format.

    Args:
        name: ``keys`` or ``values``; prefixes the ledger's items.
        dtype: Format in which they are kept.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.buffer = TokenBuffer(name, dtype)

    @property
    def length(self) -> int:
        return self.buffer.length

    def append(self, x: Tensor) -> None:
        self.buffer.append(x)

    def read(self, dtype: torch.dtype) -> Tensor:
        return self.buffer.view().to(dtype)

    def keep(self, index: Tensor) -> None:
        self.buffer.keep(index)

    def replace_by_newest(self, index: Tensor) -> None:
        self.buffer.replace_by_newest(index)

    def drop_front(self, n: int) -> None:
        self.buffer.drop_front(n)

    def reorder(self, rows: Tensor) -> None:
        self.buffer.reorder(rows)

    def parts(self) -> Iterator[Part]:
        return self.buffer.parts()


class BufferedStore:
    """What stores of several buffers share: every buffer has the same tokens."""

    def buffers(self) -> list[TokenBuffer]:
        """All that are in use, the first of which knows the length."""
        raise NotImplementedError(f"{type(self).__name__} names no buffers")

    @property
    def length(self) -> int:
        return self.buffers()[0].length

    def keep(self, index: Tensor) -> None:
        for buffer in self.buffers():
            buffer.keep(index)

    def reorder(self, rows: Tensor) -> None:
        for buffer in self.buffers():
            buffer.reorder(rows)

    def parts(self) -> Iterator[Part]:
        for buffer in self.buffers():
            yield from buffer.parts()


class QuantStore(BufferedStore):
    """Tokens as packed integer codes with scales and zero points.

    Args:
        name: ``keys`` or ``values``.
        scheme: Bits, group, axis, symmetry. On the channel axis, tokens come in whole groups.
        scale_dtype: Format of scales and zero points.
    """

    def __init__(self, name: str, scheme: Scheme, scale_dtype: torch.dtype) -> None:
        self.scheme, self.scale_dtype = scheme, scale_dtype
        self.codes = TokenBuffer(f"{name} codes", torch.uint8)
        self.scales = TokenBuffer(f"{name} scales", scale_dtype)
        self.zeros = None if scheme.symmetric else TokenBuffer(f"{name} zero points", scale_dtype)

    def append(self, x: Tensor) -> None:
        codes, scale, zero = quantise(x, self.scheme, self.scale_dtype)
        self.codes.append(pack(codes, self.scheme.bits))
        self.scales.append(scale)
        if self.zeros is not None and zero is not None:
            self.zeros.append(zero)

    def read(self, dtype: torch.dtype) -> Tensor:
        codes = unpack(self.codes.view(), self.scheme.bits)
        zero = None if self.zeros is None else self.zeros.view()
        return dequantise(codes, self.scales.view(), zero, self.scheme, dtype)

    def rounded(self, x: Tensor) -> Tensor:
        """``x`` as it would be read back, without storing it."""
        codes, scale, zero = quantise(x, self.scheme, self.scale_dtype)
        return dequantise(codes, scale, zero, self.scheme, x.dtype)

    def keep(self, index: Tensor) -> None:
        if self.scheme.axis == "channel":
            raise ValueError("tokens that share a scale cannot be evicted one by one")
        super().keep(index)

    def buffers(self) -> list[TokenBuffer]:
        return [b for b in (self.codes, self.scales, self.zeros) if b is not None]


class LowRankStore:
    """Tokens as coefficients in a fixed basis: ``x ≈ c Wᵀ`` with ``W`` ``[H, D, r]`` orthonormal.

    ``read`` gives the coefficients ``[B, H, T, r]``; attention weighs those and expands once
    (``expand``), so that the full rank is never rebuilt for the tokens.

    Args:
        inner: How the coefficients themselves are stored.
        basis: ``[H, D, r]``; an artefact of the model, shared by all sequences.
    """

    def __init__(self, inner: DenseStore | QuantStore, basis: Tensor) -> None:
        self.inner, self.basis = inner, basis

    @property
    def length(self) -> int:
        return self.inner.length

    def append(self, x: Tensor) -> None:
        self.inner.append(x @ self.basis.to(x.dtype))

    def read(self, dtype: torch.dtype) -> Tensor:
        return self.inner.read(dtype)

    def expand(self, y: Tensor) -> Tensor:
        """``[B, H, n, r]`` → ``[B, H, n, D]``."""
        return y @ self.basis.to(y.dtype).transpose(1, 2)

    def keep(self, index: Tensor) -> None:
        self.inner.keep(index)

    def reorder(self, rows: Tensor) -> None:
        self.inner.reorder(rows)

    def parts(self) -> Iterator[Part]:
        return self.inner.parts()
