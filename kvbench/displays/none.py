"""Nothing at all: the exit code and the result file say it."""

from __future__ import annotations

from kvbench.displays.base import Outcome, drain
from kvbench.engine.journal import RunFolder
from kvbench.record.state import RunState


class Nothing:
    """Waits and keeps silent."""

    owns_terminal = False

    def watch(self, folder: RunFolder, *, live: bool) -> Outcome:
        return drain(folder)

    def report(self, folder: RunFolder, state: RunState) -> None:
        pass
