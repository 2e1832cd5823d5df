"""Rows that are one row under several names: methods that kept the same tokens in every sample; pure, without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any


def mark_of(records: Mapping[str, Mapping[str, Any]]) -> str | None:
    """One mark of what a method kept in all its samples and of the losses that came of it.

    ``None`` where a sample has none: the method drops no token, or cannot say what it reads.
    """
    if not records or not all(data.get("kept") for data in records.values()):
        return None
    lines = "".join(f"{key} {records[key]['kept']} {records[key]['nll']!r}\n" for key in sorted(records))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def first_alike(marks: Mapping[str, str | None]) -> dict[str, str]:
    """Row → the first row before it with the same mark."""
    first: dict[str, str] = {}
    found: dict[str, str] = {}
    for label, mark in marks.items():
        if mark is None:
            continue
        if mark in first:
            found[label] = first[mark]
        else:
            first[mark] = label
    return found
