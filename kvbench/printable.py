"""Text of others made fit for a terminal: what it could be ordered by becomes visible.

Names, messages and texts come from methods, models, corpora and files. An escape sequence among them could move the
cursor, rename the window or hide a line; an order of direction could make a label read as another one.
"""

from __future__ import annotations

import codecs
import re
from typing import Any

_ORDERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and newline, DEL, C1
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"  # direction, line and paragraph ends, byte-order mark
    "\ud800-\udfff]"  # halves of pairs, which no encoding can write
)
_ALIKE = str.maketrans({
    "Δ": "d", "×": "x", "±": "+-", "·": "-", "–": "-", "—": "-", "…": "...", "★": "*", "≤": "<=", "≥": ">=", "∞": "inf", "²": "2",
    "░": ".", "▒": ":", "▓": "#", "█": "@", "↵": "/", "╲": "\\", "→": "->", "ö": "oe", "ä": "ae", "ü": "ue",
})  # fmt: skip
"""What stands for a sign where the terminal's encoding lacks it."""
FALLBACK = "kvbench-alike"
"""The error handler that writes so: ``stream.reconfigure(errors=FALLBACK)``."""


def printable(text: str) -> str:
    """``text`` with control and direction characters as ``\\u001b``, which JSON reads back; newlines and tabs stay."""
    return _ORDERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def printable_data(data: Any) -> Any:
    """Nested plain data or a frozen record of it with every text in it printable."""
    if isinstance(data, str):
        return printable(data)
    if isinstance(data, dict):
        return {printable_data(key): printable_data(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(printable_data(value) for value in data)
    return data


def _alike(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    said = text.translate(_ALIKE)
    return "".join(c if c.isascii() else c.encode("ascii", "backslashreplace").decode() for c in said), error.end


codecs.register_error(FALLBACK, _alike)
