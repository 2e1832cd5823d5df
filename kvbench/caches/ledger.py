"""Bytes, counted from the tensors themselves."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import MemberDescriptorType, ModuleType
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One tensor that a cache holds, and how much of it is in use.

    Attributes:
        name: What it is in the ledger (``keys``, ``value scales``, ``kept positions`` …).
        tensor: The tensor; its whole storage is held.
        used: Bytes of it that the next query depends on; the rest is preallocated room.
        live: The elements in use, a view of ``tensor``; ``None`` is all of it, or of a tensor with room the first along its token axis.
    """

    name: str
    tensor: Tensor
    used: int
    live: Tensor | None = None


@dataclass(frozen=True)
class ByteLedger:
    """Itemised bytes of a cache or of one of its layers.

    Attributes:
        items: name → bytes in use.
        slack: Bytes preallocated and not in use yet.
        artefacts: Weights-side bytes (a calibrated basis), shared by all sequences; never part of ``stored``.
    """

    items: Mapping[str, int] = field(default_factory=dict)
    slack: int = 0
    artefacts: Mapping[str, int] = field(default_factory=dict)

    @property
    def stored(self) -> int:
        """Bytes that the method must keep to answer the next query."""
        return sum(self.items.values())

    @property
    def allocated(self) -> int:
        """Stored bytes and slack: what the storages hold."""
        return self.stored + self.slack

    def __add__(self, other: ByteLedger) -> ByteLedger:
        return ByteLedger(
            dict(Counter(self.items) + Counter(other.items)),
            self.slack + other.slack,
            dict(Counter(self.artefacts) + Counter(other.artefacts)),
        )

    def to_plain(self) -> dict[str, Any]:
        return {"items": dict(self.items), "slack": self.slack, "artefacts": dict(self.artefacts)}


def ledger_of(parts: Iterable[Part], artefacts: Iterable[Part] = ()) -> ByteLedger:
    """Count ``parts``: each storage once, used bytes by name, the rest as slack."""
    items: Counter[str] = Counter()
    slack = 0
    seen: set[int] = set()
    for part in parts:
        items[part.name] += part.used
        storage = part.tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            slack += storage.nbytes()
        slack -= part.used
    weights: Counter[str] = Counter()
    for part in artefacts:
        weights[part.name] += part.used
    return ByteLedger({name: size for name, size in items.items() if size}, slack, dict(weights))


def reachable_tensors(root: object, stop: Iterable[int] = (), *, modules: bool = False) -> list[Tensor]:
    """Distinct tensors reachable from ``root`` through attributes and containers, one a storage.

    Args:
        root: Where to start, usually a cache.
        stop: ``id`` of objects not to enter (the model, shared artefacts).
        modules: Whether others of torch's modules are entered.
    """
    closed = (str, bytes, int, float, type, ModuleType, *(() if modules else (torch.nn.Module,)))
    found: dict[int, Tensor] = {}
    visited: set[int] = set(stop)
    pending: list[object] = [root]
    while pending:
        item = pending.pop()
        if id(item) in visited or isinstance(item, closed):
            continue
        visited.add(id(item))
        if isinstance(item, Tensor):
            if item.numel():
                found.setdefault(item.untyped_storage().data_ptr(), item)
            pending.extend(vars(item).values())
            continue
        if isinstance(item, Mapping):
            pending.extend(item.values())
        elif isinstance(item, (list, tuple, set, frozenset, deque)):
            pending.extend(item)
        pending.extend(_attributes(item))
    return list(found.values())


def _attributes(item: object) -> Iterator[object]:
    """Instance attributes, slots and what a function or a partial holds: places where a tensor can hide."""
    yield from getattr(item, "__dict__", {}).values()
    for cls in type(item).__mro__:
        for slot in cls.__dict__.values() if "__slots__" in cls.__dict__ else ():
            if isinstance(slot, MemberDescriptorType):  # under whatever name: private ones are mangled
                with suppress(AttributeError):  # an empty slot
                    yield slot.__get__(item)
    for cell in getattr(item, "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            yield cell.cell_contents
    for name in ("__self__", "__func__", "__defaults__", "__kwdefaults__"):
        yield getattr(item, name, None)
    if isinstance(item, partial):
        yield from (item.func, item.args, item.keywords)


def storage_bytes(root: object, stop: Iterable[int] = ()) -> int:
    """Sum of the distinct storages reachable from ``root``."""
    return sum(t.untyped_storage().nbytes() for t in reachable_tensors(root, stop))
