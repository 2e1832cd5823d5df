"""Reads the header of a GGUF file in one pass, and nothing beyond it.

Source of the layout: the format's specification (ggml, docs/gguf.md). Every count and length is held against the
file's own size before it is believed, so a damaged file is refused at once.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvbench.errors import ModelError
from kvbench.models.gguf.header import ARRAY, FLOAT32, SCALARS, STRING, Header, Span, Tensor, broken, decimal
from kvbench.models.gguf.kinds import block_sizes

MAGIC = b"GGUF"
VERSIONS = (2, 3)
LONGEST_NAME, MOST_DIMENSIONS = 1 << 16, 4
MOST_ITEMS = 1 << 22
"""Keys, tensors and strings in arrays together; the largest vocabularies have half a million entries in all."""

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file; a file that did not change since is not read again.

    Raises:
        ModelError: it cannot be read, is damaged or cut short, or is of another version or byte order.
    """
    try:
        status = path.stat()
        return _read(path, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ModelError(f"'{path.name}' cannot be read: {reason}", hint="check --model") from error


@lru_cache(maxsize=4)
def _read(path: Path, *_: int) -> Header:
    with path.open("rb") as file:
        _check_start(path, file.read(8))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Walk(path, content).header()


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
