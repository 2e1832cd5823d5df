"""The dashboard, and the plain table once it is closed."""

from __future__ import annotations

from kvbench.displays.base import Outcome
from kvbench.displays.plain import Plain
from kvbench.engine.journal import RunFolder


class Full(Plain):
    """Runs the Textual app in this process; the run itself is in others."""

    owns_terminal = True

    def watch(self, folder: RunFolder, *, live: bool) -> Outcome:
        from kvbench.tui import run_dashboard

        outcome = run_dashboard(folder.path, live=live)
        return "over" if outcome == "finished" else outcome
