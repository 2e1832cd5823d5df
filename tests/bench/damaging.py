"""Damage to files: what a disk or an editor does to bytes, and what a hand does to data."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

VALUES: Sequence[Any] = (
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**63 - 1, -(2**63), 0.0, -0.5, 1e308, 5e-324, "", "x", "-1", "NaN", "\x1b[31m", "a" * 5000,
    "9" * 5000, "..", "/", "baseline", [], {}, [[]], [None], {"": None}, [0] * 3, {"x": [1]}, "\u202e", "0", "1e999",
)  # fmt: skip


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """One or two accidents of a disk or an editor."""
    for _ in range(rng.choice((1, 1, 2))):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 3, 40, 400, 4096))
        data = ACCIDENTS[rng.randrange(len(ACCIDENTS))](data, at, size, rng)
    return data


def _a_bit(data: bytes, at: int, size: int, rng: random.Random) -> bytes:
    if not data:
        return _a_number(data, at, size, rng)
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _lines(data: bytes, at: int, size: int, rng: random.Random) -> bytes:
    """One is lost, or all are in another order."""
    lines = data.split(b"\n")
    rng.shuffle(lines) if rng.random() < 0.2 else lines.pop(rng.randrange(len(lines)))
    return b"\n".join(lines)


def _a_number(data: bytes, at: int, size: int, rng: random.Random) -> bytes:
    number = rng.choice((b"9" * 5000, b"1e999", b"-1", b"NaN", b"0", b"null", b"9223372036854775807"))
    digits = [i for i in range(len(data)) if data[i : i + 1].isdigit() and not data[i - 1 : i].isdigit()]
    if not digits:
        return data
    start = end = rng.choice(digits)
    while data[end : end + 1].isdigit():
        end += 1
    return data[:start] + number + data[end:]


ACCIDENTS: Sequence[Callable[[bytes, int, int, random.Random], bytes]] = (
    lambda data, at, size, rng: data[:at],
    lambda data, at, size, rng: data[:at] + bytes(size) + data[at + size :],
    lambda data, at, size, rng: data[:at] + data[at + size :],
    lambda data, at, size, rng: data[:at] + data[max(0, at - size) : at] + data[at:],
    lambda data, at, size, rng: data[:at] + rng.randbytes(min(size, 40)) + data[at:],
    _a_bit,
    lambda data, at, size, rng: rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"[" * 100_000, b"\x80\x04")) + data,
    _lines,
    _a_number,
)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into nested data; of long lists and maps the first few."""
    yield path
    items = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    for key, value in items[:60]:
        yield from places(value, (*path, key))


def damaged_data(data: Any, rng: random.Random, paths: Sequence[tuple[Any, ...]]) -> Any:
    """A copy with one or two fields of another value, left out, or there under another name."""
    data = json.loads(json.dumps(data))
    for path in rng.sample(paths, rng.choice((1, 1, 2))):
        parent = data
        try:
            for key in path[:-1]:
                parent = parent[key]
            kind = rng.randrange(4)
            if not path:
                data = rng.choice(VALUES)
            elif kind == 0 and isinstance(parent, dict):
                del parent[path[-1]]
            elif kind == 1 and isinstance(parent, dict):
                parent[str(rng.choice(("x", "", "0", path[-1] + "x", "\x1b")))] = parent.pop(path[-1])
            elif kind == 1 and isinstance(parent, list):
                parent.append(parent[path[-1]])
            else:
                parent[path[-1]] = rng.choice(VALUES)
        except (KeyError, IndexError, TypeError):
            continue
    return data
