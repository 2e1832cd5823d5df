"""Files that somebody else wrote, as bytes and as text: a byte-order mark at the head is no part of what a file says."""

from __future__ import annotations

import codecs
from pathlib import Path


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
