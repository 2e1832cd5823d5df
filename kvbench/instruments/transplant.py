"""What the ledger counts of one cache, put into another.

A cache of prompt B that is given all that the ledger counts of prompt A must from then on answer as A's does, to the bit.
If it does not, attention reads something that is not counted, wherever that is kept: in an attribute, a closure, a module
global, numpy, a file, another process. Nothing has to be found for that, and no number format is special: bytes are moved.

What moves, and nothing else:

- the elements in use of every counted tensor; room that is not in use comes as zeros;
- the shapes of tensors that view them, and ``None`` where the other cache has such a tensor;
- whole numbers that the ledgers of both tell by the same (:mod:`kvbench.instruments.told`): a length along an axis, or an element of
  a small counted tensor. Any other number could be the name of a hiding place.

Numbers, further views of one storage, and places in lists and dictionaries can themselves spell out what nobody counts. A layer
has a few of each: where more than :data:`LOOSE` of them differ between the two caches, the rest stays behind.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kvbench.caches.cache import KVCache
from kvbench.caches.layer import LayerCache
from kvbench.caches.ledger import Part
from kvbench.instruments.holding import ABSENT, CODE, SHARED, Branch, Held, Number, Reader, children_of
from kvbench.instruments.told import Told, is_same_telling

LOOSE, LOOSE_OF_A_HEAD = 64, 8
"""What a layer may have beside counted bytes that differs with the text, numbers, views and places: so many, more a KV head, and
one a counted tensor."""
LEFT = 3
"""Examples of what was left behind, for the message."""


class Snapshot:
    """What the ledger counts of ``cache``, copied, and where in it that is.

    Args:
        axis: Along which the elements in use come first, where a part with room does not say which they are; ``None``
            takes the third of four axes, else the longest.
        shared: ``id`` of objects that all caches have, the model's modules.
    """

    def __init__(self, cache: KVCache, axis: int | None = None, shared: frozenset[int] = frozenset()) -> None:
        self.storages: dict[int, Tensor] = {}  # bytes, by the address they had
        self.guessed = False
        self.left: list[str] = []
        self._alive: list[Tensor] = []  # keeps addresses from being used again while they are looked up
        parts = [list(layer.all_parts()) for layer in cache.layers]
        for part in (part for own in parts for part in own):
            self._copy(part, axis)
        reader = Reader(set(self.storages), shared)
        self.layers = [reader.layer(layer, Told.of(own)) for layer, own in zip(cache.layers, parts, strict=True)]
        self._alive.clear()

    def _copy(self, part: Part, axis: int | None) -> None:
        """The part's elements in use, each in its own place of a copy of its storage."""
        source = part.tensor.untyped_storage()
        self._alive.append(part.tensor)
        if source.nbytes() == 0:
            return
        room = self.storages.setdefault(source.data_ptr(), torch.zeros(source.nbytes(), dtype=torch.uint8, device=part.tensor.device))
        live, guessed = live_elements(part, axis)
        self.guessed |= guessed
        target = torch.empty(0, dtype=live.dtype, device=live.device)
        target.set_(room.untyped_storage(), live.storage_offset(), live.size(), live.stride())
        target.copy_(live)

    def put_into(self, cache: KVCache) -> list[str]:
        """Make ``cache`` hold this instead of what it counts itself.

        Returns:
            Examples of what was left behind: numbers and the like that are no part of the ledger.
        """
        parts = [list(layer.all_parts()) for layer in cache.layers]
        own = {part.tensor.untyped_storage().data_ptr() for of_layer in parts for part in of_layer}
        writer = _Writer({address: room.clone() for address, room in self.storages.items()}, own)
        for index, (node, layer) in enumerate(zip(self.layers, cache.layers, strict=True)):
            writer.begin(layer, parts[index])
            writer.put(node, layer, f"layers[{index}]")
        return writer.left[:LEFT]


def live_elements(part: Part, axis: int | None = None) -> tuple[Tensor, bool]:
    """The elements of a part that are in use, and whether that had to be guessed."""
    whole = part.tensor
    if part.live is not None and part.live.nbytes == part.used:
        return part.live, False
    if part.used >= whole.nbytes or whole.ndim == 0:
        return whole, False
    along = axis if axis is not None else 2 if whole.ndim == 4 else max(range(whole.ndim), key=lambda d: whole.shape[d])
    if along >= whole.ndim or part.used * whole.shape[along] % whole.nbytes:
        return whole.flatten()[:0], True  # nothing that is a view of it has so many bytes
    return whole.narrow(along, 0, part.used * whole.shape[along] // whole.nbytes), True


class _Writer:
    """Puts what a :class:`Reader` described into the layers of another cache."""

    def __init__(self, copies: Mapping[int, Tensor], own: set[int]) -> None:
        self.copies, self.own = copies, own
        self.left: list[str] = []
        self._told, self._loose = Told(), 0
        self._done: set[int] = set()
        self._viewed: set[int] = set()
        self._matches: dict[int, int] = {}

    def begin(self, layer: LayerCache, parts: list[Part]) -> None:
        """What is put from now on is of ``layer``, which counts ``parts``."""
        self._told = Told.of(parts)
        self._loose = LOOSE + LOOSE_OF_A_HEAD * layer.context.kv_heads + len(parts)

    def put(self, node: Any, item: Any, path: str) -> Any:
        """What is to stand where ``item`` stands."""
        if isinstance(node, Held):
            free = self._is_free(node, item)
            return self._tensor(node, item) if free or self._spend(path, "view", 1 + len(node.size) // 2) else item
        if isinstance(node, Number):
            return self._number(node, item, path)
        if isinstance(node, Branch):
            return self._branch(node, item, path)
        if node.value is None and isinstance(item, Tensor) and item.untyped_storage().data_ptr() in self.own:
            return None if self._spend(path, "None") else item
        if item is ABSENT and isinstance(node.value, (bool, type(None), *SHARED)):
            return node.value if self._spend(path, type(node.value).__name__) else item
        if item is not node.value and not _is_plain(node.value):
            self.left.append(f"{path} ({type(node.value).__name__})")
        return item

    def _spend(self, path: str, kind: str, cost: int = 1) -> bool:
        """One more thing that the text decided and that is no counted byte; ``False`` once there were too many."""
        self._loose -= cost
        if self._loose < 0:
            self.left.append(f"{path} ({kind}, one of too many)")
        return self._loose >= 0

    def _is_free(self, node: Held, item: Any) -> bool:
        """Whether the view says nothing: the other cache has the same one there, or it is the first of a storage and all of it."""
        is_first = node.storage not in self._viewed
        self._viewed.add(node.storage)
        count = math.prod(node.size)
        is_whole = node.offset == 0 and count * node.dtype.itemsize == self.copies[node.storage].nbytes
        return (is_first and is_whole and max(node.stride, default=0) <= count) or self._is_viewed_so(item, node)

    def _is_viewed_so(self, item: Any, node: Held) -> bool:
        """Whether ``item`` views the other cache's match of the same storage in the same way."""
        if not isinstance(item, Tensor):
            return False
        match = self._matches.setdefault(node.storage, item.untyped_storage().data_ptr())
        found = (match, item.dtype, item.storage_offset(), tuple(item.size()), tuple(item.stride()))
        return found == (item.untyped_storage().data_ptr(), node.dtype, node.offset, node.size, node.stride)

    def _number(self, node: Number, item: Any, path: str) -> Any:
        if item is ABSENT:
            return node.value if node.value in node.told.by and self._spend(path, "int") else item
        if type(item) is not int or item == node.value:
            return item
        if is_same_telling(node.value, node.told, item, self._told):
            return node.value if self._spend(path, "int") else item
        self.left.append(f"{path} (int)")
        return item

    def _are_bounds(self, node: Branch, children: Mapping[Any, Any]) -> bool:
        """Whether numbers in both say where each of several things begins and the last one ends: the last is told, the rest lie below."""
        numbers, theirs = [n for n in node.children.values() if isinstance(n, Number)], list(children.values())
        if not 3 <= len(numbers) == len(node.children) == len(theirs) or not all(type(x) is int for x in theirs):
            return False
        ours = [number.value for number in numbers]
        rise = all(row[0] == 0 and row == sorted(row) for row in (ours, theirs))
        return rise and is_same_telling(ours[-1], numbers[-1].told, theirs[-1], self._told)

    def _tensor(self, node: Held, item: Any) -> Tensor:
        fits = type(item) is Tensor and item.dtype == node.dtype and item.device == self.copies[node.storage].device
        target = item if fits else torch.empty(0, dtype=node.dtype, device=self.copies[node.storage].device)
        target.set_(self.copies[node.storage].untyped_storage(), node.offset, node.size, node.stride)
        return target

    def _branch(self, node: Branch, item: Any, path: str) -> Any:
        if id(node) in self._done or (item is not ABSENT and type(item) is not node.kind):
            return item
        self._done.add(id(node))
        if item is ABSENT:
            return self._made(node, path)
        children = dict(children_of(item) or ())
        if not self._are_places_moved(node, item, children, path):
            return item
        if self._are_bounds(node, children) and all(self._spend(path, "int") for _ in children):
            return _filled(item, {key: number.value for key, number in node.children.items()}, children)
        found = {key: self.put(child, children.get(key, ABSENT), f"{path}.{key}") for key, child in node.children.items()}
        return _filled(item, {key: value for key, value in found.items() if value is not ABSENT}, children)

    def _made(self, node: Branch, path: str) -> Any:
        """A container or an object that the other cache has no match for: one of a list that the text makes longer."""
        if not self._spend(path, node.kind.__name__):
            return ABSENT
        found = {key: self.put(child, ABSENT, f"{path}.{key}") for key, child in node.children.items()}
        found = {key: value for key, value in found.items() if value is not ABSENT}
        if issubclass(node.kind, tuple):
            return _tuple_of(node.kind, list(found.values())) if len(found) == len(node.children) else ABSENT
        try:
            return _filled(node.kind.__new__(node.kind), found, {})
        except TypeError:  # a kind that is not made without arguments
            return ABSENT

    def _are_places_moved(self, node: Branch, item: Any, children: Mapping[Any, Any], path: str) -> bool:
        """Other keys are as many things that are said; another length of a list is one."""
        if isinstance(item, Mapping):
            return all(self._spend(path, "key") for _ in node.children.keys() ^ children.keys())
        return len(node.children) == len(children) or self._spend(path, "length")


def _filled(item: Any, found: Mapping[Any, Any], children: Mapping[Any, Any]) -> Any:
    """A container or an object that holds what was ``found`` instead of its ``children``."""
    if isinstance(item, tuple):
        values = list(found.values())
        is_same = len(values) == len(item) and all(a is b for a, b in zip(values, item, strict=True))
        return item if is_same else _tuple_of(type(item), values)
    if isinstance(item, (list, deque)):
        item.clear()
        item.extend(found.values())
    elif isinstance(item, dict):
        item.clear()
        item.update(found)
    else:
        for name, value in found.items():
            if value is not children.get(name, ABSENT):
                object.__setattr__(item, name, value)
    return item


def _tuple_of(kind: type, values: list[Any]) -> Any:
    return kind(*values) if hasattr(kind, "_fields") else kind(values)


def _is_plain(value: Any) -> bool:
    """Whether it may well be the same for every prompt."""
    return value is None or isinstance(value, (bool, str, torch.nn.Module, *SHARED, *CODE))
