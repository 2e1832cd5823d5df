"""A dashboard without a terminal, as SVG."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kvbench.engine.journal import EVENTS
from kvbench.errors import ResultError
from kvbench.tui.app import Dashboard


def capture(folder: Path, size: tuple[int, int]) -> str:
    """The SVG text of a run's dashboard as its journal now stands.

    Raises:
        ResultError: there is no journal.
    """
    if not (folder / EVENTS).is_file():
        raise ResultError(f"{folder} holds no {EVENTS}", hint="name a run's folder")
    return asyncio.run(_capture(folder, size))


async def _capture(folder: Path, size: tuple[int, int]) -> str:
    app = Dashboard(folder, live=False)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        await pilot.pause()
        return app.export_screenshot(title=f"kvbench {folder.resolve().name}")
