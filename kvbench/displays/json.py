"""For programs: one JSON document on stdout at the end, the result as ``result.json`` has it."""

from __future__ import annotations

from kvbench.displays.base import Outcome, drain
from kvbench.displays.streams import put
from kvbench.engine.journal import RunFolder
from kvbench.record import results
from kvbench.record.state import RunState


class Json:
    """Silent until the end."""

    owns_terminal = False

    def watch(self, folder: RunFolder, *, live: bool) -> Outcome:
        return drain(folder)

    def report(self, folder: RunFolder, state: RunState) -> None:
        """Also of a run that did not finish: ``complete`` is false then."""
        if state.spec is not None:
            put(results.dumps(results.build(state, folder.name)).decode())
