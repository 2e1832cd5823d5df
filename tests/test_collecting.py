"""What is made uncollected is not looked through at once when that ends, and circles in it are still found later."""

from __future__ import annotations

import gc
import weakref

import pytest

from kvbench.record import collecting
from kvbench.record.collecting import uncollected

pytestmark = pytest.mark.fast


class Circle:
    """Holds itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_was_made_counts_as_old_and_circles_are_found_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_kept", False)
    gc.unfreeze()  # what tests hold for good
    searches: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        searches.append(phase)

    gc.callbacks.append(note)
    try:
        with uncollected():
            kept = [[] for _ in range(50_000)]
            seen = weakref.ref(Circle())
        few = [[] for _ in range(10)]
        assert not searches  # the first thing made would else have all of it looked through
    finally:
        gc.callbacks.remove(note)
    gc.collect()
    gc.freeze()
    assert seen() is None
    assert gc.isenabled()
    assert len(kept) > len(few)
