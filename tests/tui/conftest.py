"""Runs to look at."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvbench.summary
from made_up_evaluators import FAKES
from made_up_run import write


@pytest.fixture(autouse=True)
def plain_evaluators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvbench.summary, "_evaluator", lambda spec: FAKES[spec.name])


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return write(tmp_path / "smollm2-finished")


@pytest.fixture
def midway(tmp_path: Path) -> Path:
    return write(tmp_path / "smollm2-midway", share=0.6)
