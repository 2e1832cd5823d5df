"""Caches that keep a full copy of the prompt where no ledger counts it, one hiding place each, and read it beside what they count."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from kvbench.caches.attend import attend
from kvbench.caches.evicted import EvictedLayer
from kvbench.caches.layer import TokenView
from kvbench.caches.ledger import Part

Pair = tuple[Tensor, Tensor]
GLOBAL: dict[Any, Any] = {}
WEAK: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
LOCAL = threading.local()
COUNTED: list[Any] = []


class Hiding(EvictedLayer):
    """Counts half of the tokens, and answers half by those and half by the copy: only its absence tells."""

    folder: ClassVar[Path]
    prompt_kept = 0

    def compress(self, prompt: TokenView) -> None:
        super().compress(prompt)
        self.prompt_kept = self.length
        self.hide((prompt.keys.clone(), prompt.values.clone()))

    def attend(self, q: Tensor) -> Tensor:
        keys, values = self.read(q.dtype)
        copy = (torch.as_tensor(x).to(q.dtype).view(*keys.shape[:2], -1, keys.shape[3]) for x in self.found())
        full = (torch.cat((x, fresh[:, :, self.prompt_kept :]), 2) for x, fresh in zip(copy, (keys, values), strict=True))
        return (attend(q, keys, values, self.scaling) + attend(q, *full, self.scaling)) / 2

    def hide(self, pair: Pair) -> None:
        raise NotImplementedError

    def found(self) -> Any:
        raise NotImplementedError


def _place(name: str, put: Callable[[Any, Pair], None], get: Callable[[Any], Any]) -> type[Hiding]:
    return type(name, (Hiding,), {"hide": put, "found": get})


def _set(name: str, value: Callable[[Any, Pair], Any]) -> Callable[[Any, Pair], None]:
    return lambda layer, pair: setattr(layer, name, value(layer, pair))


def _bytes(pair: Pair) -> bytes:
    return b"".join(x.numpy().tobytes() for x in pair)


def _pair(data: Any) -> Any:
    return np.frombuffer(bytes(data), np.float32).copy().reshape(2, -1)


def _mapped(layer: Any, pair: Pair) -> Any:
    room = mmap.mmap(-1, len(_bytes(pair)))
    room[:] = _bytes(pair)
    return room


class Other:
    """A process that holds bytes: what is read from its pipe is written back to it."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.write(data)

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def read(self) -> bytes:
        assert self.process.stdout is not None
        data = self.process.stdout.read(self.size)
        self.write(data)
        return data

    def __del__(self) -> None:
        self.process.kill()
        self.process.communicate()


class Carrying(Tensor):
    """A tensor with something on it."""


class OnATensor(Hiding):
    """On a tensor that is counted itself."""

    def hide(self, pair: Pair) -> None:
        self.carrier: Any = torch.zeros(1).as_subclass(Carrying)
        self.carrier.copy = pair

    def found(self) -> Any:
        return self.carrier.copy

    def parts(self) -> Any:
        yield from super().parts()
        if self.prompt_kept:
            yield Part("carrier", self.carrier, 4)


class BehindAView(Hiding):
    """The counted tensor is a view; what lies behind it in the same storage is called room."""

    def hide(self, pair: Pair) -> None:
        self.whole = torch.cat([self.values_store.read(torch.float32).flatten(), *(x.flatten() for x in pair)])

    def found(self) -> Any:
        return self.whole[-2 * self.size :].view(2, -1)

    @property
    def size(self) -> int:
        return (self.whole.numel() - self.counted) // 2

    @property
    def counted(self) -> int:
        return self.context.kv_heads * self.prompt_kept * self.context.head_dim

    def parts(self) -> Any:
        yield from super().parts()
        if self.prompt_kept:
            yield Part("more values", self.whole[: self.counted], 4 * self.counted)


class CalledRoom(Hiding):
    """The counted tensor is all of the storage, and says that half of it is not in use."""

    def hide(self, pair: Pair) -> None:
        self.whole = torch.cat((*pair, *pair), 2)

    def found(self) -> Any:
        return self.whole.chunk(4, 2)[2:]

    def parts(self) -> Any:
        yield from super().parts()
        if self.prompt_kept:
            yield Part("block", self.whole, self.whole.nbytes // 64)


class Neighbour(Hiding):
    """In the layer above, which knows nothing of it."""

    layers: ClassVar[dict[int, Any]] = {}

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.of_others: Any = None
        type(self).layers[self.context.index] = self

    def hide(self, pair: Pair) -> None:
        self.other = self.layers[(self.context.index + 1) % self.context.layers]
        self.other.of_others = pair

    def found(self) -> Any:
        return self.other.of_others


class ByCounter(Hiding):
    """In a list, found by a number that looks like a length."""

    def hide(self, pair: Pair) -> None:
        self.place = len(COUNTED)
        COUNTED.append(pair)

    def found(self) -> Any:
        return COUNTED[self.place]


class InViews(Hiding):
    """A bit a number: where in a counted tensor each of many views of it begins."""

    def hide(self, pair: Pair) -> None:
        self.both = torch.zeros(2)
        self.bits = [[self.both[int(bit) :][:1] for bit in (x > 0).flatten().tolist()] for x in pair]

    def found(self) -> Any:
        return torch.tensor([[float(view.storage_offset()) for view in views] for views in self.bits]) - 0.5

    def parts(self) -> Any:
        yield from super().parts()
        if self.prompt_kept:
            yield Part("both", self.both, self.both.nbytes)


class InReferences(Hiding):
    """A bit a number: which of two counted tensors stands in its place."""

    def hide(self, pair: Pair) -> None:
        self.both = torch.zeros(1), torch.zeros(1)
        self.bits = [[self.both[int(bit)] for bit in (x > 0).flatten().tolist()] for x in pair]

    def found(self) -> Any:
        return torch.tensor([[float(one.data_ptr() == self.both[1].data_ptr()) for one in row] for row in self.bits]) - 0.5

    def parts(self) -> Any:
        yield from super().parts()
        if self.prompt_kept:
            yield from (Part("both", one, one.nbytes) for one in self.both)


class InKeys(Hiding):
    """A bit a number: whether it is a key of a dictionary."""

    def hide(self, pair: Pair) -> None:
        both = torch.stack(pair).flatten()
        self.size = len(both)
        self.bits = dict.fromkeys(torch.nonzero(both > 0)[:, 0].tolist(), 0)

    def found(self) -> Any:
        return torch.full((self.size,), -0.5).index_fill_(0, torch.tensor(list(self.bits)), 0.5).view(2, -1)


class ByContent(Hiding):
    """In a dictionary, found by what is counted itself."""

    def key(self) -> tuple[int, int]:
        return self.context.index, _hash(tuple(x[:, :, : self.prompt_kept].contiguous() for x in self.read(torch.float32)))

    def hide(self, pair: Pair) -> None:
        GLOBAL[self.key()] = pair

    def found(self) -> Any:
        return GLOBAL[self.key()]


def _numbered(layer: Any, pair: Pair) -> None:
    """By the first number that is free: 0 and 1 are lengths in many a ledger."""
    taken = GLOBAL.setdefault(("numbered", type(layer), layer.context.index), [])
    layer.place = len(taken)
    taken.append(pair)


@cache
def _remembered(key: int) -> list[Any]:
    return []


def _closure(layer: Any, pair: Pair) -> Any:
    return lambda: pair


def _at(layer: Any) -> str:
    return str(layer.folder / f"{type(layer).__name__}-{layer.context.index}")


def _hash(pair: Pair) -> int:
    return int.from_bytes(hashlib.sha256(_bytes(pair)).digest()[:7], "big")


def _by_content(layer: Any, pair: Pair) -> None:
    layer.key = _hash(pair)
    GLOBAL[layer.key] = pair


def _slot(layer: Any) -> tuple[str, int]:
    return "slot", layer.context.index


PLACES: dict[str, type[Hiding]] = {
    "an attribute": _place("Attribute", _set("copy", lambda _, p: p), lambda s: s.copy),
    "numpy": _place("Numpy", _set("copy", lambda _, p: [x.numpy() for x in p]), lambda s: s.copy),
    "a list of floats": _place("Floats", _set("copy", lambda _, p: [x.flatten().tolist() for x in p]), lambda s: s.copy),
    "a long integer": _place(
        "Integer",
        lambda s, p: (setattr(s, "copy", int.from_bytes(_bytes(p), "big")), setattr(s, "bytes", len(_bytes(p))))[0],
        lambda s: _pair(s.copy.to_bytes(s.bytes, "big")),
    ),
    "bytes": _place("Bytes", _set("copy", lambda _, p: pickle.dumps([x.numpy() for x in p])), lambda s: pickle.loads(s.copy)),
    "a file": _place("File", lambda s, p: torch.save(p, _at(s)), lambda s: torch.load(_at(s))),
    "a memory map": _place("Mapped", _set("copy", _mapped), lambda s: _pair(s.copy[:])),
    "another process": _place("Process", _set("copy", lambda _, p: Other(_bytes(p))), lambda s: _pair(s.copy.read())),
    "a ctypes buffer": _place(
        "Ctypes", _set("copy", lambda _, p: ctypes.create_string_buffer(_bytes(p))), lambda s: _pair(s.copy.raw[:-1])
    ),
    "a closure": _place("Closure", _set("copy", _closure), lambda s: s.copy()),
    "a tensor subclass": OnATensor,
    "behind a view": BehindAView,
    "what is called room": CalledRoom,
    "another layer": Neighbour,
    "a list, by a number": ByCounter,
    "a list, by a small number": _place(
        "Numbered", _numbered, lambda s: GLOBAL["numbered", type(s), s.context.index][s.place]
    ),
    "small numbers": _place(
        "Small", _set("signs", lambda _, p: [[(0, 1, 2)[int(x)] for x in (y.sign() + 1).flatten()] for y in p]),
        lambda s: torch.tensor(s.signs, dtype=torch.float32) - 1,
    ),
    "where views begin": InViews,
    "which of two tensors": InReferences,
    "keys": InKeys,
    "the model's own module": _place(
        "OnModule", lambda s, p: setattr(s.context.module, "kv_copy", p), lambda s: s.context.module.kv_copy
    ),
    "the module's __dict__": _place(
        "InModuleDict", lambda s, p: sys.modules[__name__].__dict__.update({f"_{s.context.index}": p}),
        lambda s: globals()[f"_{s.context.index}"],
    ),
    "a global, by object": _place("ById", lambda s, p: GLOBAL.update({id(s): p}), lambda s: GLOBAL[id(s)]),
    "a global, by layer": _place("BySlot", lambda s, p: GLOBAL.update({_slot(s): p}), lambda s: GLOBAL[_slot(s)]),
    "a global, by the keys' hash": _place("ByContent", _by_content, lambda s: GLOBAL[s.key]),
    "a weak dictionary": _place("Weak", lambda s, p: WEAK.update({s: p}), lambda s: WEAK[s]),
    "a memo": _place("Memo", lambda s, p: _remembered(id(s)).append(p), lambda s: _remembered(id(s))[-1]),
    "artefacts": _place(
        "Artefacts",
        lambda s, p: s.context.artefacts.update(zip(("k", "v"), p, strict=True)),
        lambda s: [s.context.artefacts[name] for name in ("k", "v")],
    ),
    "the context": _place("Context", lambda s, p: object.__setattr__(s.context, "copy", p), lambda s: s.context.copy),
    "the observer": _place("Observer", _set("observed_copy", lambda _, p: SimpleNamespace(pair=p)), lambda s: s.observed_copy.pair),
    "a class attribute": _place(
        "OnClass", lambda s, p: setattr(type(s), f"copy_{s.context.index}", p), lambda s: getattr(type(s), f"copy_{s.context.index}")
    ),
    "a thread's own": _place("Local", lambda s, p: setattr(LOCAL, str(_slot(s)), p), lambda s: getattr(LOCAL, str(_slot(s)))),
}  # fmt: skip
