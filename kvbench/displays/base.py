"""What a display is: it follows a run while it goes on, and says at the end what came of it."""

from __future__ import annotations

import sys
from typing import Literal, Protocol, TextIO

from kvbench.engine.journal import RunFolder
from kvbench.engine.start import follow
from kvbench.errors import UsageError
from kvbench.record.state import RunState

Outcome = Literal["over", "detached", "cancel"]
"""The run is over; the user left and it goes on; the user asked for its end."""
NAMES = ("auto", "full", "plain", "json", "none")


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


def choose(name: str) -> Display:
    """The display called ``name``; ``auto`` is the dashboard on a terminal and plain lines elsewhere."""
    if name == "auto":
        name = "full" if sys.stdout.isatty() and sys.stderr.isatty() and _has_signs(sys.stdout) else "plain"
    if name == "full":
        if not _has_signs(sys.stdout):
            raise UsageError(f"the dashboard is drawn in Unicode, and this terminal is {sys.stdout.encoding}", hint="--display plain")
        from kvbench.displays.full import Full

        return Full()
    if name == "json":
        from kvbench.displays.json import Json

        return Json()
    if name == "none":
        from kvbench.displays.none import Nothing

        return Nothing()
    from kvbench.displays.plain import Plain

    return Plain()


def _has_signs(stream: TextIO) -> bool:
    """Whether blocks and braille can be written to it."""
    return (stream.encoding or "utf-8").lower().replace("-", "").startswith("utf")
