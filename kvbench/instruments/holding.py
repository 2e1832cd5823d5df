"""What a layer holds, described so that it can be put into another: counted tensors as views, numbers, and the rest as it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType
from typing import Any

import torch
from torch import Tensor

from kvbench.caches.layer import LayerCache, LayerContext
from kvbench.caches.rope import Rope
from kvbench.instruments.told import Told

SHARED = (type, LayerContext, Rope, torch.dtype, torch.device)
"""What caches have in common, whatever they hold; and the modules of the model."""
CODE = (FunctionType, BuiltinFunctionType, MethodType, partial)


@dataclass(frozen=True)
class Held:
    """A tensor that views a counted storage."""

    storage: int
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Number:
    value: int
    told: Told


@dataclass
class Branch:
    """A container or an object: what it holds, by index, key or attribute."""

    kind: type
    children: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Other:
    """Anything that stays behind."""

    value: Any


ABSENT = object()
"""Where the other has nothing."""


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


class Reader:
    """Describes what layers hold; what two of them share is described once.

    Args:
        counted: Addresses of the storages that the ledger counts. shared: ``id`` of objects that are not entered: the model's modules.
    """

    def __init__(self, counted: set[int], shared: frozenset[int]) -> None:
        self.counted, self.shared = counted, shared
        self.told = Told()
        self.known: dict[int, Any] = {}

    def layer(self, layer: LayerCache, told: Told) -> Any:
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
                return Other(item)
            return Held(address, item.dtype, int(item.storage_offset()), tuple(item.size()), tuple(item.stride()))
        if type(item) is int:
            return Number(item, self.told)
        children = None if id(item) in self.shared else children_of(item)
        if children is None:
            return Other(item)
        branch = self.known[id(item)] = Branch(type(item))
        branch.children.update((key, self.node(child)) for key, child in children)
        return branch


def children_of(item: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(item, Mapping):
        return list(item.items())
    if isinstance(item, (list, tuple, deque)):
        return list(enumerate(item))
    return list(_members(item)) if _is_entered(item) else None
