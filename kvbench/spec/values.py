"""Values of parameters as they are written: numbers, truths and text."""

from __future__ import annotations

import math

ParamValue = bool | int | float | str
Params = tuple[tuple[str, ParamValue], ...]


def parse_value(text: str) -> ParamValue:
    """``true``/``false``, integers and finite floats become themselves; anything else stays text."""
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if math.isfinite(value):
            return value
    return text.strip()


def format_value(value: ParamValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


FIRST = ""
"""Name of a value that is given without one: the first parameter's."""
