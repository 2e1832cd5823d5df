"""The live dashboard of a run, and its picture.

It reads a run's journal and nothing else, so it lives in another process than the benchmark
and can come and go. Textual is imported when a dashboard is opened, not before.
"""

from __future__ import annotations

from pathlib import Path

from kvbench.tui.outcome import Outcome


def run_dashboard(folder: Path, *, live: bool) -> Outcome:
    """Show a run until the user leaves.

    Args:
        folder: The run's folder; its ``events.jsonl`` may still be growing, or not exist yet.
        live: Follow the journal. ``False`` reads it once: the final state, which ``p`` replays.

    Returns:
        ``finished`` if the run had ended, ``detached`` if it goes on, ``cancel`` if the user asked to end it.
    """
    from kvbench.tui.app import Dashboard

    return Dashboard(folder, live=live).run() or "detached"


def screenshot(folder: Path, path: Path, size: tuple[int, int] = (160, 48)) -> Path:
    """Draw a run's dashboard without a terminal and write it as SVG.

    Args:
        folder: The run's folder.
        path: File to write; its folder must exist.
        size: Columns and lines of the imagined terminal.

    Raises:
        ResultError: the folder holds no journal.
    """
    from kvbench.tui.capture import capture

    path.write_text(capture(folder, size), encoding="utf-8")
    return path


__all__ = ["Outcome", "run_dashboard", "screenshot"]
