"""Folders in the cache that are made once: whole or not at all, whatever happens on the way.

Work happens in a folder of its own that is renamed when it is whole, so after any interruption running again simply works.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from kvbench.errors import ResourceError

MARKER = "kvbench.json"
"""Written last: what the folder was made from, and the size of every file."""

Build = Callable[[Path], tuple[Path, Mapping[str, Any]]]
"""Given an empty folder to work in: the made folder, somewhere in it, and what else the marker should say."""


def ready(folder: Path, facts: Mapping[str, str]) -> Path | None:
    """``folder`` if it is there, whole, and was made from ``facts``; else ``None``."""
    try:
        marker = orjson.loads((folder / MARKER).read_bytes())
        whole = all((folder / name).stat().st_size == size for name, size in marker["files"].items())
        same = all(marker.get(name) == value for name, value in facts.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return folder if whole and same else None


def ensure(folder: Path, facts: Mapping[str, str], build: Build) -> Path:
    """``folder``, built if it is not ready. Two processes at once: the second waits for the first.

    Raises:
        ResourceError: the cache folder cannot be written.
    """
    from filelock import FileLock

    found = ready(folder, facts)
    if found:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            return ready(folder, facts) or _build(folder, facts, build)
    except OSError as error:
        raise unwritable(error) from error


def unwritable(error: OSError) -> ResourceError:
    """The error that the cache folder cannot be written."""
    hint = "free some space, or set KVBENCH_CACHE to another folder"
    return ResourceError(f"the cache folder cannot be written: {error.strerror or error}", hint=hint)


def _build(folder: Path, facts: Mapping[str, str], build: Build) -> Path:
    """Build in a folder of its own, then put the result in place. Needs the lock."""
    for left_over in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        made, more = build(work)
        files = {file.name: file.stat().st_size for file in sorted(made.iterdir())}
        (made / MARKER).write_bytes(orjson.dumps({**facts, **more, "files": files}, option=orjson.OPT_INDENT_2))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder
