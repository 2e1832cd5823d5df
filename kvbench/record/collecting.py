"""Leaving Python's search for circles of garbage for later."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_kept = False


def keep_for_good() -> None:
    """What is held now is held to the end: circles are then looked for among newer objects alone, in milliseconds."""
    global _kept
    gc.collect()
    gc.freeze()
    _kept = True


@contextmanager
def uncollected() -> Iterator[None]:
    """While much is made that stays and has no circles: to look through all of it again and again is a third of the time.

    At the end what is there counts as old, as if it had been looked through: the next search would else begin with all of it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            if not _kept:  # else it would be let go of again; asking gc itself counts all that is kept
                gc.freeze()
                gc.unfreeze()
            gc.enable()
