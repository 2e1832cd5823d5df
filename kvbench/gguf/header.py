"""The header of a GGUF file: keys, and where each tensor lies; nothing beyond the header is read.

Source of the layout: the format's specification (ggml, docs/gguf.md). Every count and length is held against the
file's own size before it is believed, so a damaged file is refused at once.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench.errors import ModelError
from kvbench.gguf.kinds import F32, block_sizes

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Kinds of value: the number that the file holds and struct's letter."""
FLOAT32, STRING, ARRAY = 6, 8, 9
LONGEST_NAME, MOST_DIMENSIONS = 1 << 16, 4
MOST_ITEMS = 1 << 22
"""Keys, tensors and strings in arrays together; the largest vocabularies have half a million entries in all."""

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class Span:
    """An array that is still in the file: the kind of its items, how many, and its first and last byte."""

    kind: int
    count: int
    start: int
    end: int


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies.

    Attributes:
        name: As the file spells it.
        shape: Slowest dimension first, as torch counts (the file holds the reverse).
        kind: Number of its ggml type.
        offset, size: Bytes from the start of the file, and bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        path: The file.
        values: Keys with numbers, texts or :class:`Span`.
        tensors: By name, in the file's order.
    """

    path: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def array(self, key: str) -> list[Any]:
        """The items of an array; none where the file has no such key.

        Raises:
            ModelError: the key holds no array, or text that is no UTF-8.
        """
        span = self.values.get(key)
        if span is None:
            return []
        if not isinstance(span, Span):
            raise broken(self.path, f"key {key!r} holds no array")
        with self.path.open("rb") as file:
            file.seek(span.start)
            content = file.read(span.end - span.start)
        try:
            return _strings(content, span.count) if span.kind == STRING else _numbers(content, span)
        except (UnicodeDecodeError, struct.error) as error:
            raise broken(self.path, f"key {key!r} holds text that is no UTF-8") from error

    def floats(self, name: str) -> list[float]:
        """The numbers of a float32 tensor of one dimension."""
        tensor = self.tensors[name]
        if tensor.kind != F32 or len(tensor.shape) != 1:
            raise broken(self.path, f"tensor {name!r} should be a row of float32 numbers")
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            return [decimal(x) for x in struct.unpack(f"<{tensor.shape[0]}f", file.read(tensor.size))]


def broken(path: Path, why: str) -> ModelError:
    """The error that a file is no GGUF file or a damaged one."""
    return ModelError(f"'{path.name}' is no GGUF file, or a broken one: {why}", hint="fetch the file again")


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file.

    Raises:
        ModelError: it cannot be read, is damaged or cut short, or is of another version or byte order.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            _check_start(path, start)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Walk(path, content).header()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ModelError(f"'{path.name}' cannot be read: {reason}", hint="check --model") from error


def decimal(single: float) -> float:
    """The shortest decimal number that a float32 was rounded from: 1e-05 and not 9.99999974738e-06."""
    for digits in range(1, 10):
        short = float(f"{single:.{digits}g}")
        if struct.unpack("<f", struct.pack("<f", short))[0] == single:
            return short
    return single


def _check_start(path: Path, start: bytes) -> None:
    if start[:4] != MAGIC:
        raise broken(path, "it does not begin with 'GGUF'")
    if len(start) < 8:
        raise broken(path, "it ends within its header")
    version = int.from_bytes(start[4:], "little")
    if version in VERSIONS:
        return
    if int.from_bytes(start[4:], "big") in VERSIONS:
        raise ModelError(f"'{path.name}' is a GGUF file for big-endian machines", hint="fetch the little-endian file")
    if version == 1:
        raise ModelError(f"'{path.name}' is of GGUF version 1, which is read no more", hint="fetch a newer conversion of the model")
    raise broken(path, f"version {version} is unknown")


class _Walk:
    """One pass over the header."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content, self.size, self.at, self.left = path, content, len(content), 8, MOST_ITEMS

    def header(self) -> Header:
        try:
            tensors, keys = self._count(24), self._count(13)
            values = self._values(keys)
            return Header(self.path, values, self._tensors(tensors, values))
        except (struct.error, UnicodeDecodeError) as error:
            raise broken(self.path, "it ends, or turns to nonsense, within its header") from error

    def _number(self, layout: struct.Struct) -> Any:
        (value,) = layout.unpack_from(self.content, self.at)
        self.at += layout.size
        return value

    def _count(self, smallest: int) -> int:
        """A number of things, each of at least ``smallest`` bytes."""
        count: int = self._number(_U64)
        self.left -= count
        if count > (self.size - self.at) // smallest or self.left < 0:
            raise broken(self.path, f"it counts {count:,} entries")
        return count

    def _bytes(self, limit: int) -> bytes:
        length: int = self._number(_U64)
        if length > min(limit, self.size - self.at):
            raise broken(self.path, f"a text of {length:,} bytes")
        self.at += length
        return self.content[self.at - length : self.at]

    def _values(self, count: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for _ in range(count):
            key = self._bytes(LONGEST_NAME).decode()
            if key in values:
                raise broken(self.path, f"key {key!r} comes twice")
            values[key] = self._value(key)
        return values

    def _value(self, key: str) -> Any:
        kind = self._number(_U32)
        if kind == STRING:
            return self._bytes(self.size).decode(errors="replace")
        if kind == ARRAY:
            return self._span(key)
        if kind not in SCALARS:
            raise broken(self.path, f"key {key!r} is of unknown kind {kind}")
        value = self._number(struct.Struct("<" + SCALARS[kind]))
        return decimal(value) if kind == FLOAT32 else value

    def _span(self, key: str) -> Span:
        kind = self._number(_U32)
        if kind in SCALARS:
            each = struct.calcsize("<" + SCALARS[kind])
            count = self._count(each)
            start, self.at = self.at, self.at + count * each
        elif kind == STRING:
            count = self._count(8)
            start, self.at = self.at, self._after_strings(count)
        else:
            raise broken(self.path, f"key {key!r} is an array of unknown kind {kind}")
        return Span(kind, count, start, self.at)

    def _after_strings(self, count: int) -> int:
        """Where an array of texts ends."""
        at, size, content, length_at = self.at, self.size, self.content, _U64.unpack_from
        for _ in range(count):
            at += 8 + length_at(content, at)[0]
            if at > size:
                raise broken(self.path, "an array of texts goes beyond its end")
        return at

    def _tensors(self, count: int, values: Mapping[str, Any]) -> dict[str, Tensor]:
        found = [self._tensor() for _ in range(count)]
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            raise broken(self.path, f"general.alignment is {alignment}")
        start = -(-self.at // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        for name, shape, kind, offset in found:
            if name in tensors:
                raise broken(self.path, f"tensor {name!r} comes twice")
            tensors[name] = self._placed(name, shape, kind, offset, start, alignment)
        return tensors

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._bytes(LONGEST_NAME).decode()
        dimensions = self._number(_U32)
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise broken(self.path, f"tensor {name!r} has {dimensions:,} dimensions")
        shape = tuple(self._number(_U64) for _ in range(dimensions))
        return name, shape[::-1], self._number(_U32), self._number(_U64)

    def _placed(self, name: str, shape: tuple[int, ...], kind: int, offset: int, start: int, alignment: int) -> Tensor:
        if kind not in block_sizes():
            raise ModelError(f"tensor {name!r} of '{self.path.name}' is of unknown ggml type {kind}", hint="update the gguf package")
        block, each = block_sizes()[kind]
        elements = 1
        for dimension in shape:
            elements *= dimension
        if not elements or shape[-1] % block or offset % alignment:
            raise broken(self.path, f"tensor {name!r} of shape {list(shape)} at {offset:,} cannot be")
        size = elements // block * each
        if start + offset + size > self.size:
            raise broken(self.path, f"tensor {name!r} ends at byte {start + offset + size:,} of {self.size:,}; it was cut short")
        return Tensor(name, shape, kind, start + offset, size)


def _strings(content: bytes, count: int) -> list[str]:
    strings, at = [], 0
    for _ in range(count):
        end = at + 8 + _U64.unpack_from(content, at)[0]
        strings.append(content[at + 8 : end].decode())
        at = end
    return strings


def _numbers(content: bytes, span: Span) -> list[Any]:
    return list(struct.unpack(f"<{span.count}{SCALARS[span.kind]}", content))
