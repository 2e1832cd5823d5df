"""The plain path made to store the codes that the fused path stored.

Both paths compute a fresh token's keys and values by products of other shapes, so that these differ by rounding. Once in
many numbers rounding crosses the boundary between two codes, and the paths then store neighbouring codes: two numbers a
whole level apart, which no error of rounding explains any more. From there on the paths read different caches, and later numbers
differ by as much. So a store that is *dictated* is told, token by token, the codes of the fused path in place of its own. Every
number that reaches it then differs by rounding alone from what the fused path coded, and both halves of the work are seen
apart: whether the codes are those of these numbers (:mod:`kvbench.instruments.stored_codes`), and what reading them gives (the logits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvbench.caches.cache import KVCache
from kvbench.caches.composed import ComposedLayer
from kvbench.caches.guarded import GuardedLayer
from kvbench.caches.layer import LayerCache
from kvbench.caches.lowrank import ValueLowRankLayer
from kvbench.caches.packing import dequantise, pack, unpack
from kvbench.caches.quantised import QuantisedLayer
from kvbench.caches.stores import QuantStore
from kvbench.fused.layout import DENSE, TILE, unpack_columns, unpack_rows
from kvbench.fused.storage import Plane, Region, steps_at
from kvbench.fused.token_tensors import is_ragged

if TYPE_CHECKING:
    from kvbench.fused.layer import FusedState


@dataclass(frozen=True)
class Codes:
    """What one row and KV head holds as codes.

    Attributes:
        numbers: ``[n, W]`` uint8. scales, zeros: ``[n, groups]``, or ``[n / span, W]`` where tokens of a channel share them.
    """

    numbers: Tensor
    scales: Tensor
    zeros: Tensor | None


Told = list[tuple[list[Codes], list[Codes]]]
"""Of every layer, keys and values of each row and KV head; an empty list where they are no codes."""


# What the fused path stored --------------------------------------------------------------------


def codes_of(state: FusedState) -> Told:
    """Everything that ``state`` holds as codes now, in the order of :mod:`kvbench.caches.packing`. The state may go on."""
    appended = int(state.counter)
    coded = [layer.taken.regions[0] for layer in state.layers]  # of two regions the first is the coded one
    return [(_pairs(region, region.keys, appended, False), _pairs(region, region.values, appended, True)) for region in coded]


def _pairs(region: Region, plane: Plane, appended: int, is_value: bool) -> list[Codes]:
    if plane.form.bits == DENSE:
        return []
    lengths = region.held + (appended if region.grows else 0)
    return [_codes(region, plane, start, n, is_value) for start, n in zip(region.first.tolist(), lengths.tolist(), strict=True)]


def _codes(region: Region, plane: Plane, start: int, n: int, is_value: bool) -> Codes:
    """Whole tiles from slot ``start`` on that hold ``n`` tokens."""
    stop = start + -(-n // TILE) * TILE
    words = plane.numbers[start // TILE : stop // TILE] if is_value else plane.numbers[start:stop]
    numbers = unpack_columns(words, plane.form) if is_value else unpack_rows(words, plane.form)
    scales, zeros = steps_at(plane, slice(start, stop), region.dtype)
    return Codes(numbers, scales.clone(), None if zeros is None else zeros.clone())


# The plain path, told ----------------------------------------------------------------------------


class DictatedStore(QuantStore):
    """Takes over a store, and gives coming tokens the codes that it is told.

    Attributes:
        held: Tokens when it took over. given: The numbers ``[B, H, n, W]`` that came since, as they came.
    """

    def __init__(self, store: QuantStore, told: Sequence[Codes]) -> None:
        self.scheme, self.scale_dtype = store.scheme, store.scale_dtype
        self.codes, self.scales, self.zeros = store.codes, store.scales, store.zeros
        self.held, self.given, self._told = store.length, list[Tensor](), told

    def append(self, x: Tensor) -> None:
        codes, scales, zeros = self.told(self.length, x.shape[2], x.shape[:2])
        self.given.append(x.clone())
        self.codes.append(pack(codes, self.scheme.bits))
        self.scales.append(scales)
        if self.zeros is not None and zeros is not None:
            self.zeros.append(zeros)

    def rounded(self, x: Tensor) -> Tensor:
        """As :meth:`QuantStore.rounded`, of the tokens that come next."""
        return dequantise(*self.told(self.length, x.shape[2], x.shape[:2]), self.scheme, x.dtype)

    def told(self, start: int, n: int, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes, scales and zero points of ``n`` tokens from ``start`` on, as :func:`kvbench.caches.packing.quantise` gives them."""
        each = self.scheme.group if self.scheme.axis == "channel" else 1
        steps = slice(start // each, (start + n) // each)
        codes = _rows([pair.numbers[start : start + n] for pair in self._told], rows)
        scales = _rows([pair.scales[steps] for pair in self._told], rows)
        zeros = [pair.zeros[steps] for pair in self._told if pair.zeros is not None]
        return codes, scales, _rows(zeros, rows) if zeros else None

    def differing(self) -> tuple[int, int]:
        """Codes, and scales and zero points, that are not those told, of the tokens it took over; to be asked before any comes."""
        if not self.held:
            return 0, 0
        own = unpack(self.codes.view(), self.scheme.bits), self.scales.view(), None if self.zeros is None else self.zeros.view()
        told = self.told(0, self.held, own[0].shape[:2])
        codes, *steps = (int((a != b).sum()) for a, b in zip(own, told, strict=True) if a is not None and b is not None)
        return codes, sum(steps)

    def came(self) -> Tensor | None:
        """All numbers that came ``[B, H, n, W]``, in order."""
        return torch.cat(self.given, 2) if self.given else None


def _rows(pairs: list[Tensor], rows: Sequence[int]) -> Tensor:
    """``[B, H, …]`` of one each."""
    return torch.stack(pairs).view(*rows, *pairs[0].shape)


def dictate(cache: KVCache, told: Told) -> list[DictatedStore]:
    """Have ``cache``'s stores of codes store ``told``, layer by layer; what they are now."""
    stores: list[DictatedStore] = []
    for layer, (keys, values) in zip(cache.layers, told, strict=True):
        cells: list[LayerCache] = [cell for row in layer.cells for cell in row] if is_ragged(layer) else [layer]
        for i, cell in enumerate(cells):
            own = slice(i, i + 1) if is_ragged(layer) else slice(None)
            stores += _dictate(cell, keys[own], values[own])
    return stores


def _dictate(layer: LayerCache, keys: list[Codes], values: list[Codes]) -> list[DictatedStore]:
    if isinstance(layer, ComposedLayer):
        return _dictate(layer.inner, keys, values)
    made: list[DictatedStore] = []
    if isinstance(layer, QuantisedLayer):
        for side, told in ((layer.keys_side, keys), (layer.values_side, values)):
            if side.old is not None and told:
                side.old = _made(side.old, told, made)
    elif isinstance(layer, GuardedLayer) and keys:
        layer.coded = _made(layer.coded[0], keys, made), _made(layer.coded[1], values, made)
    elif isinstance(layer, ValueLowRankLayer) and isinstance(layer.values_store.store.inner, QuantStore):
        layer.values_store.store.inner = _made(layer.values_store.store.inner, values, made)
    return made


def _made(store: QuantStore, told: list[Codes], made: list[DictatedStore]) -> DictatedStore:
    made.append(DictatedStore(store, told))
    return made[-1]
