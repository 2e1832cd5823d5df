"""What the ledger counts of one cache, put into another.

A cache of prompt B that is given all that the ledger counts of prompt A must from then on answer as A's does, to the bit.
If it does not, attention reads something that is not counted, wherever that is kept: in an attribute, a closure, a module
global, numpy, a file, another process. Nothing has to be found for that, and no number format is special: bytes are moved.

What moves, and nothing else:

- the elements in use of every counted tensor; room that is not in use comes as zeros;
- the shapes of tensors that view them, and ``None`` where the other cache has such a tensor;
- whole numbers that the ledger itself tells: a length along an axis, or an element of a small counted tensor. Any other
  number could be the name of a hiding place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType
from typing import Any

import torch
from torch import Tensor

from kvbench.caches.cache import KVCache
from kvbench.caches.layer import LayerCache, LayerContext
from kvbench.caches.ledger import Part
from kvbench.caches.rope import Rope

SMALL = 64
"""Elements of a counted tensor of whole numbers up to which each may be a length."""
SHARED = (type, torch.nn.Module, LayerContext, Rope, torch.dtype, torch.device)
"""What caches have in common, whatever they hold."""
CODE = (FunctionType, BuiltinFunctionType, MethodType, partial)
LEFT = 3
"""Examples of what was left behind, for the message."""


@dataclass(frozen=True)
class _Held:
    """A tensor that views a counted storage."""

    storage: int
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Number:
    value: int
    told: bool


@dataclass
class _Branch:
    """A container or an object: what it holds, by index, key or attribute."""

    kind: type
    children: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Other:
    """Anything that stays behind."""

    value: Any


_ABSENT = object()


class Snapshot:
    """What the ledger counts of ``cache``, copied, and where in it that is.

    Args:
        axis: Along which the elements in use come first, where a part with room does not say which they are; ``None``
            takes the third of four axes, else the longest.
    """

    def __init__(self, cache: KVCache, axis: int | None = None) -> None:
        self.storages: dict[int, Tensor] = {}  # bytes, by the address they had
        self.guessed = False
        self.left: list[str] = []
        self._alive: list[Tensor] = []  # keeps addresses from being used again while they are looked up
        parts = [list(layer.all_parts()) for layer in cache.layers]
        for part in (part for own in parts for part in own):
            self._copy(part, axis)
        reader = _Reader(set(self.storages))
        self.layers = [reader.layer(layer, _told(own)) for layer, own in zip(cache.layers, parts, strict=True)]
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
            writer.told = _told(parts[index])
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


def _told(parts: list[Part]) -> set[int]:
    """Numbers that the ledger tells: lengths along an axis, in all and in use, and elements of small counted tensors."""
    found: set[int] = {0}
    for part in parts:
        tensor = part.tensor
        found.update(tensor.shape)
        found.update(part.used * n // tensor.nbytes for n in tensor.shape if tensor.nbytes and part.used * n % tensor.nbytes == 0)
        if not tensor.is_floating_point() and not tensor.is_complex() and tensor.numel() <= SMALL:
            found.update(int(x) for x in tensor.flatten().tolist())
    return found


def _members(item: object) -> Iterator[tuple[str, Any]]:
    """Attributes of an object, in its dictionary and its slots."""
    yield from getattr(item, "__dict__", {}).items()
    for cls in type(item).__mro__:
        for name, slot in cls.__dict__.items() if "__slots__" in cls.__dict__ else ():
            if isinstance(slot, MemberDescriptorType) and hasattr(item, name):
                yield name, getattr(item, name)


def _is_entered(item: object) -> bool:
    """Whether an object may hold what a cache stores: nothing that is shared, nor of a library's."""
    if isinstance(item, (*SHARED, *CODE)):
        return False
    return hasattr(item, "__dict__") or any("__slots__" in cls.__dict__ for cls in type(item).__mro__)


class _Reader:
    """Describes what layers hold; what two of them share is described once."""

    def __init__(self, counted: set[int]) -> None:
        self.counted = counted
        self.told: set[int] = set()
        self.known: dict[int, Any] = {}

    def layer(self, layer: LayerCache, told: set[int]) -> Any:
        self.told = told
        return self.node(layer)

    def node(self, item: Any) -> Any:
        if id(item) not in self.known:
            self.known[id(item)] = self._new(item)
        return self.known[id(item)]

    def _new(self, item: Any) -> Any:
        if isinstance(item, Tensor):
            address = item.untyped_storage().data_ptr()
            if address not in self.counted:
                return _Other(item)
            return _Held(address, item.dtype, int(item.storage_offset()), tuple(item.size()), tuple(item.stride()))
        if type(item) is int:
            return _Number(item, item in self.told)
        children = _children(item)
        if children is None:
            return _Other(item)
        branch = self.known[id(item)] = _Branch(type(item))
        branch.children.update((key, self.node(child)) for key, child in children)
        return branch


def _children(item: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(item, Mapping):
        return list(item.items())
    if isinstance(item, (list, tuple, deque)):
        return list(enumerate(item))
    return list(_members(item)) if _is_entered(item) else None


class _Writer:
    """Puts what a :class:`_Reader` described into the layers of another cache."""

    def __init__(self, copies: Mapping[int, Tensor], own: set[int]) -> None:
        self.copies, self.own = copies, own
        self.told: set[int] = set()
        self.left: list[str] = []
        self._done: set[int] = set()

    def put(self, node: Any, item: Any, path: str) -> Any:
        """What is to stand where ``item`` stands."""
        if isinstance(node, _Held):
            return self._tensor(node, item)
        if isinstance(node, _Number):
            told = node.told and (item is _ABSENT or (type(item) is int and item in self.told))
            return node.value if told else item
        if isinstance(node, _Branch):
            return self._branch(node, item, path)
        if node.value is None and isinstance(item, Tensor) and item.untyped_storage().data_ptr() in self.own:
            return None
        if item is not node.value and not _is_plain(node.value):
            self.left.append(f"{path} ({type(node.value).__name__})")
        return item

    def _tensor(self, node: _Held, item: Any) -> Tensor:
        fits = type(item) is Tensor and item.dtype == node.dtype and item.device == self.copies[node.storage].device
        target = item if fits else torch.empty(0, dtype=node.dtype, device=self.copies[node.storage].device)
        target.set_(self.copies[node.storage].untyped_storage(), node.offset, node.size, node.stride)
        return target

    def _branch(self, node: _Branch, item: Any, path: str) -> Any:
        if type(item) is not node.kind or id(node) in self._done:
            return item
        self._done.add(id(node))
        children = dict(_children(item) or ())
        found = {key: self.put(child, children.get(key, _ABSENT), f"{path}.{key}") for key, child in node.children.items()}
        found = {key: value for key, value in found.items() if value is not _ABSENT}
        if isinstance(item, tuple):
            values = list(found.values())
            return item if all(a is b for a, b in zip(values, item, strict=False)) else _tuple_of(type(item), values)
        if isinstance(item, (list, deque)):
            item.clear()
            item.extend(found.values())
        elif isinstance(item, dict):
            item.clear()
            item.update(found)
        else:
            for name, value in found.items():
                if value is not children.get(name, _ABSENT):
                    object.__setattr__(item, name, value)
        return item


def _tuple_of(kind: type, values: list[Any]) -> Any:
    return kind(*values) if hasattr(kind, "_fields") else kind(values)


def _is_plain(value: Any) -> bool:
    """Whether it may well be the same for every prompt."""
    return value is None or isinstance(value, (bool, str, *SHARED, *CODE))
