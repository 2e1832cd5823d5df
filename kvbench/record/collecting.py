"""Leaving Python's search for circles of garbage for later."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.enable()
