"""Files of models on this machine: the cache folder, and the content hashes of what was loaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson

from kvbench.models.checkpoint import weight_files

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``; a total of 0 means that the amount is not known."""

HASH_BLOCK = 8 << 20  # bytes


def silent(stage: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


def cache_folder() -> Path:
    """Where kvbench keeps what it fetched or computed: ``KVBENCH_CACHE``, else the platform's own cache folder."""
    import platformdirs

    chosen = os.environ.get("KVBENCH_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("kvbench"))


def hash_weights(path: Path, progress: Progress = silent) -> str:
    """sha256 over the full contents of the files that loading a model reads (:func:`kvbench.models.checkpoint.weight_files`).

    One file gives its own sha256, several give the sha256 of their ``name:sha256`` lines. A file is read again only when its
    place, size or a time of change differs; no file's name is taken for its content.

    Raises:
        ModelError: there are no such files, or not all.
    """
    digests = {file.name: _file_digest(file, progress) for file in weight_files(path)}
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{name}:{digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def hash_random(config: dict[str, Any], seed: int) -> str:
    """The identity of random weights: sha256 of the config, the seed and the word ``random``."""
    return hashlib.sha256(
        orjson.dumps([config, seed, "random"], option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=str)
    ).hexdigest()


def hash_tokenizer(tokenizer: Any | None) -> str | None:
    """sha256 of a tokenizer's vocabulary (tokens with their ids, sorted); the same in every version of the libraries."""
    if tokenizer is None:
        return None
    return hashlib.sha256(orjson.dumps(sorted(tokenizer.get_vocab().items()))).hexdigest()


def sha256_of(file: Path, report: Callable[[int], None] = lambda done: None) -> str:
    """sha256 of a file's content; ``report`` is told the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with file.open("rb") as stream:
        for block in iter(lambda: stream.read(HASH_BLOCK), b""):
            digest.update(block)
            done += len(block)
            report(done)
    return digest.hexdigest()


def write_atomically(file: Path, content: bytes) -> None:
    """Write ``file`` whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _file_digest(file: Path, progress: Progress) -> str:
    real = file.resolve()
    known, key = _known_digests(), _key(real)
    if key not in known:
        size = real.stat().st_size
        digest = sha256_of(real, lambda done: progress("hashing weights", done, size))
        write_atomically(_digest_file(), orjson.dumps({**_alive(known.items()), key: digest}, option=orjson.OPT_INDENT_2))
        return digest
    return known[key]


def _key(real: Path) -> str:
    status = real.stat()
    return f"{real}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}"


def _digest_file() -> Path:
    return cache_folder() / "weight_hashes.json"


def _known_digests() -> dict[str, str]:
    """What was hashed before; a missing or broken file only costs time."""
    try:
        known = orjson.loads(_digest_file().read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return known if isinstance(known, dict) else {}


def _alive(known: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Entries whose file is still there."""
    return {key: digest for key, digest in known if Path(key.rsplit("|", 3)[0]).exists()}
