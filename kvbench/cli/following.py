"""Showing a run to its end, and the exit code that follows from how it ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kvbench.displays.base import Display
from kvbench.displays.ending import called
from kvbench.displays.streams import talk
from kvbench.engine import start
from kvbench.engine.journal import RunFolder
from kvbench.errors import ExitCode
from kvbench.record.unreadable import figures_of


def resume_command(folder: RunFolder) -> str:
    """What to type to go on with a run, from this folder."""
    return f"kvbench run --resume {called(folder)}"


def drive(folder: RunFolder, display: Display, *, launch: bool) -> int:
    """Show a run that this command started or resumed; Ctrl-C, SIGTERM and SIGHUP end it cleanly.

    Returns:
        130 after a cancel, 0 otherwise.

    Raises:
        KvbenchError: what ended the run, after whatever it gave was shown.
    """
    try:
        with _signals_as_interrupts(active=not display.owns_terminal):
            if launch:
                start.launch(folder)
            outcome = display.watch(folder, live=True)
    except KeyboardInterrupt:
        outcome = "cancel"
    if outcome == "detached" and folder.is_alive():
        talk(f"the run goes on: kvbench watch {folder.path}")
        return int(ExitCode.OK)
    if outcome == "cancel" and folder.is_alive():
        talk("stopping …")
        start.stop(folder)
    return conclude(folder, display, cancelled=outcome == "cancel")


def conclude(folder: RunFolder, display: Display, *, cancelled: bool = False) -> int:
    """Report a run that nothing drives any more.

    Raises:
        KvbenchError: what ended it, if it failed or was killed.
    """
    state = folder.state()
    if not state.is_over:
        start.tidy(folder)
    if state.status != "finished" and (cancelled or state.status == "interrupted"):
        talk(f"interrupted; go on with: {resume_command(folder)}")
        return int(ExitCode.INTERRUPTED)
    with figures_of(folder.path):
        display.report(folder, state)
    error = start.failure(folder, state)
    if error is not None:
        raise error
    return int(ExitCode.OK)


@contextmanager
def _signals_as_interrupts(*, active: bool) -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP) if active else ()
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
