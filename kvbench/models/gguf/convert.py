"""A GGUF file as a plain folder of safetensors, config and tokenizer.

Weights go through memory a few rows at a time. Numbers that the file holds as such (16 bit too) stay as they are; codes
are decoded to float32, since what they stand for has no exact 16-bit form.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from kvbench.errors import ResourceError
from kvbench.models.gguf.config import config_of, family_and_sizes
from kvbench.models.gguf.header import Header
from kvbench.models.gguf.header_reading import read_header
from kvbench.models.gguf.numbers import blocks_of
from kvbench.models.gguf.tokenizer import check_tokenizer, write_tokenizer
from kvbench.models.gguf.wanted import Part, parts_of

LAYOUT = 1
"""Counted up when the same file would be converted otherwise."""
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

Progress = Callable[[int, int], None]


def convert(gguf: Path, into: Path, progress: Progress = lambda done, total: None) -> None:
    """Write weights, config and tokenizer of ``gguf`` into the new folder ``into``; ``progress`` counts bytes.

    Raises:
        ModelError: the file is damaged, or a family, key, tensor or tokenizer is not understood.
        ResourceError: the disk has too little room.
        OSError: writing failed otherwise.
    """
    header = read_header(gguf)
    config = config_of(header)
    check_tokenizer(header)
    parts = parts_of(header, *family_and_sizes(header))
    into.mkdir(parents=True, exist_ok=True)
    _check_room(into, converted_size(header))
    (into / "config.json").write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))
    write_tokenizer(header, into)
    _write_weights(gguf, parts, into / "model.safetensors", progress)


def converted_size(header: Header) -> int:
    """Bytes of the weights of a file that was found to be understood, once it is converted."""
    return sum(part.size for part in parts_of(header, *family_and_sizes(header)))


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        text = f"the converted weights need {needed / 1e9:.1f} GB in the cache folder and {free / 1e9:.1f} GB are free"
        raise ResourceError(text, hint="free some space, or set KVBENCH_CACHE to a folder on another disk")


def _write_weights(gguf: Path, parts: Sequence[Part], file: Path, progress: Progress) -> None:
    """A safetensors file, written from front to back (its layout: 8 bytes of length, JSON, numbers)."""
    total, done = sum(part.size for part in parts), 0
    with file.open("wb") as stream:
        stream.write(_head(parts))
        for part in parts:
            for numbers in blocks_of(gguf, part):
                stream.write(numbers.data)
                done += numbers.nbytes
                progress(done, total)


def _head(parts: Sequence[Part]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for part in parts:
        entries[part.name] = {"dtype": _NAMES[part.dtype], "shape": part.shape, "data_offsets": [at, at + part.size]}
        at += part.size
    text = orjson.dumps(entries)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
