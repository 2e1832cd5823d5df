"""kvbench's own version, as its installed package says."""

from __future__ import annotations

from functools import cache


@cache
def own() -> str:
    from importlib.metadata import version  # reads folders, so when first asked

    return version("kvbench")
