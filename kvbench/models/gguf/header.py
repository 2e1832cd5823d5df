"""What the header of a GGUF file says: keys, and where each tensor lies."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench.errors import ModelError
from kvbench.models.gguf.kinds import F32

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Kinds of value: the number that the file holds and struct's letter."""
FLOAT32, STRING, ARRAY = 6, 8, 9


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


def decimal(single: float) -> float:
    """The shortest decimal number that a float32 was rounded from: 1e-05 and not 9.99999974738e-06."""
    for digits in range(1, 10):
        short = float(f"{single:.{digits}g}")
        if struct.unpack("<f", struct.pack("<f", short))[0] == single:
            return short
    return single


def _strings(content: bytes, count: int) -> list[str]:
    strings, at = [], 0
    for _ in range(count):
        end = at + 8 + int.from_bytes(content[at : at + 8], "little")
        strings.append(content[at + 8 : end].decode())
        at = end
    return strings


def _numbers(content: bytes, span: Span) -> list[Any]:
    return list(struct.unpack(f"<{span.count}{SCALARS[span.kind]}", content))
