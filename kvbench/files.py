"""Files as others read and write them: a byte-order mark is no part of what one says, and one appears whole or not at all."""

from __future__ import annotations

import codecs
import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


def read_bytes(path: Path) -> bytes:
    """The file without a UTF-8 byte-order mark.

    Raises:
        OSError: it cannot be read.
    """
    return without_mark(path.read_bytes())


def read_text(path: Path) -> str:
    """UTF-8 text without a byte-order mark; line ends become ``\\n``.

    Raises:
        OSError: it cannot be read. UnicodeDecodeError: it is not UTF-8.
    """
    return path.read_text(encoding="utf-8").removeprefix("\ufeff")  # errors then name the byte of the file


def without_mark(data: bytes) -> bytes:
    """``data`` without a UTF-8 byte-order mark at its head; one further in is a character like others."""
    return data.removeprefix(codecs.BOM_UTF8)


def write_whole(path: Path, content: bytes) -> None:
    """Write ``path`` whole or leave it as it was; a device or a pipe, which cannot be replaced, is written to.

    Raises:
        OSError: it cannot be written; nothing half stays behind.
    """
    target = path.resolve()  # a link stays one
    if target.exists() and not target.is_file() and not target.is_dir():
        target.write_bytes(content)
        return
    draft = target.with_name(f".kvbench-{uuid4().hex[:12]}")  # short, however long the name is
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
