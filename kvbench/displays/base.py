"""What a display is: it follows a run while it goes on, and says at the end what came of it."""

from __future__ import annotations

from typing import Literal, Protocol

from kvbench.engine.journal import RunFolder
from kvbench.engine.start import follow
from kvbench.record.state import RunState

Outcome = Literal["over", "detached", "cancel"]
"""The run is over; the user left and it goes on; the user asked for its end."""


class Display(Protocol):
    """Progress and talk go to stderr, results to stdout."""

    owns_terminal: bool
    """It handles Ctrl-C itself, and a lost terminal detaches it instead of ending the run."""

    def watch(self, folder: RunFolder, *, live: bool) -> Outcome:
        """Show the run until no process drives it any more, or the user leaves."""
        ...

    def report(self, folder: RunFolder, state: RunState) -> None:
        """Say what came of it."""
        ...


def drain(folder: RunFolder) -> Outcome:
    """Wait for the run's end in silence."""
    for _ in follow(folder):
        pass
    return "over"
