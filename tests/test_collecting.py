"""What is made uncollected is not looked through at once when that ends, and circles in it are still found later."""

from __future__ import annotations

import gc
import weakref

import pytest

from kvbench.collecting import uncollected

pytestmark = pytest.mark.fast


class Circle:
    """Holds itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_was_made_counts_as_old_and_circles_are_found_later() -> None:
    assert gc.isenabled()
    with uncollected():
        kept = [[] for _ in range(50_000)]
        seen = weakref.ref(Circle())
    assert gc.get_freeze_count() or gc.get_count()[0] < 5_000  # else the next thing made has all of them looked through
    gc.collect()
    assert seen() is None
    assert gc.isenabled()
    assert len(kept) == 50_000
