"""What a compression factor is of, said wherever one is shown.

Deployed caches hold 16-bit numbers. A baseline of float32 stores twice as much, so every quantiser's factor over it is
twice what it would be there: a figure that may be wanted, and must not be taken for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvbench.figures import Figure

WIDE = {"float32": 2, "float64": 4}
"""Number formats wider than deployed caches' → how many times."""


def wide(cache_dtype: str | None) -> str:
    """The format of a baseline wider than 16 bit; empty for any other, or where it is not known."""
    return cache_dtype if cache_dtype in WIDE else ""


def titled(title: str, cache_dtype: str | None) -> str:
    """A heading or axis title of factors, with what they are of where that is wider than 16 bit."""
    return f"{title} (of {cache_dtype})" if wide(cache_dtype) else title


def notes(cache_dtype: str | None) -> list[str]:
    """One line for readers of factors over a wide baseline, else none."""
    if not wide(cache_dtype):
        return []
    over = WIDE[str(cache_dtype)]
    return [f"factors are of a {cache_dtype} cache, which is {over} times as large as a deployed 16-bit one (--cache-dtype bfloat16)"]


def noted(found: Sequence[Figure], cache_dtype: str | None) -> list[Figure]:
    """Figures with that line under each that shows factors."""
    said = notes(cache_dtype)
    return [replace(figure, notes=[*figure.notes, *said]) if figure.factors and said else figure for figure in found]
