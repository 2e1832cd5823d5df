"""Runs to look at, and dashboards whose clock stands still at the journal's last event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import made_up_scores
import pytest
from made_up_run import write

from kvbench.engine.journal import RunFolder
from kvbench.evaluators import registered
from kvbench.record import schema
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


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Evaluators of the made-up scores stand in for those of their names, whatever was asked of these before."""
    real = registered._evaluator
    monkeypatch.setattr(registered, "_evaluator", lambda spec: made_up_scores.MADE_UP.get(spec.name) or real(spec))
    schema._record_of.cache_clear()
    yield
    schema._record_of.cache_clear()


@pytest.fixture
def scored(tmp_path: Path, made_up: None) -> Path:
    return made_up_scores.write(tmp_path / "smollm2-scored")


@pytest.fixture
def scoring(tmp_path: Path, made_up: None) -> Path:
    """Within the fourth of five columns of the needle's grid."""
    return made_up_scores.write(tmp_path / "smollm2-scoring", share=0.5)
