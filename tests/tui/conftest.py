"""Runs to look at, and dashboards whose clock stands still at the journal's last event."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_run import write

from kvbench.engine.journal import RunFolder
from kvbench.tui.app import Dashboard


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return write(tmp_path / "smollm2-finished", masked="knorm")


@pytest.fixture
def midway(tmp_path: Path) -> Path:
    return write(tmp_path / "smollm2-midway", share=0.6)


@pytest.fixture
def following() -> Callable[[Path], Dashboard]:
    """A live dashboard of a folder, in which no time passes."""

    def build(folder: Path) -> Dashboard:
        last = RunFolder(folder).state().last_at or 0.0
        return Dashboard(folder, live=True, clock=lambda: last)

    return build
