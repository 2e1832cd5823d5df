"""The dashboard's looks, compared with pictures that people have looked at (``--snapshot-update`` renews them)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_run import write

from kvbench.tui.app import Dashboard

SIZES = [(80, 24), (120, 40), (200, 50)]
Following = Callable[[Path], Dashboard]


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_midway(snap_compare: Any, midway: Path, following: Following, size: tuple[int, int]) -> None:
    assert snap_compare(following(midway), terminal_size=size)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_finished(snap_compare: Any, finished: Path, size: tuple[int, int]) -> None:
    assert snap_compare(Dashboard(finished, live=False), terminal_size=size)


@pytest.mark.parametrize("plot", ["2", "3", "4"])
def test_plots(snap_compare: Any, tmp_path: Path, plot: str) -> None:
    folder = write(tmp_path / "smollm2-gpu", gpu=True)
    assert snap_compare(Dashboard(folder, live=False), press=[plot], terminal_size=(120, 40))


def test_calibrating(snap_compare: Any, tmp_path: Path, following: Following) -> None:
    folder = write(tmp_path / "smollm2-early", share=0.02)
    assert snap_compare(following(folder), press=["l"], terminal_size=(120, 40))


def test_details_at_80_columns_on_paper(snap_compare: Any, finished: Path) -> None:
    assert snap_compare(Dashboard(finished, live=False), press=["d", "t"], terminal_size=(80, 24))


def test_help(snap_compare: Any, finished: Path) -> None:
    assert snap_compare(Dashboard(finished, live=False), press=["question_mark"], terminal_size=(120, 40))


def test_question(snap_compare: Any, midway: Path, following: Following) -> None:
    assert snap_compare(following(midway), press=["ctrl+c"], terminal_size=(80, 24))


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_heat_map_midway(snap_compare: Any, scoring: Path, following: Following, size: tuple[int, int]) -> None:
    assert snap_compare(following(scoring), press=["5", "down"], terminal_size=size)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_scores(snap_compare: Any, scored: Path, size: tuple[int, int]) -> None:
    assert snap_compare(Dashboard(scored, live=False), press=["6", *["down"] * 12], terminal_size=size)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_heat_map_of_many_cells(snap_compare: Any, scored: Path, size: tuple[int, int]) -> None:
    assert snap_compare(Dashboard(scored, live=False), press=["5", "right_square_bracket", "end"], terminal_size=size)


def test_table_of_texts(snap_compare: Any, scored: Path) -> None:
    assert snap_compare(Dashboard(scored, live=False), press=["6", "right_square_bracket", "right", "t"], terminal_size=(80, 24))
