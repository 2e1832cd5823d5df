"""A kill at an exact place: before, inside or after the writing of an event, in the worker or in the supervisor.

The file that ``STUB_KILL`` names holds ``{"target", "event", "how", "count"}``; whoever is meant takes it, counts, and kills itself.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvbench.engine.journal import Journal
from kvbench.engine.pipe import Sender
from kvbench.record import events as ev


class Plan:
    """The kill that this process is waiting for, if any."""

    def __init__(self, target: str) -> None:
        self.target, self.path = target, Path(os.environ["STUB_KILL"])
        self.event, self.how, self.left = "", "", 0

    def now(self, event: ev.Event) -> str | None:
        """How to die at this event, or ``None``."""
        if not self.left and self.path.exists():
            self._take()
        if not self.left or self.event not in ("any", type(event).__name__):
            return None
        self.left -= 1
        return None if self.left else self.how

    def _take(self) -> None:
        try:
            given = json.loads(self.path.read_text())
            if given["target"] == self.target:
                self.path.unlink()
                self.event, self.how, self.left = given["event"], given["how"], given["count"]
        except (OSError, ValueError):
            return


def wrap(target: str, write: Callable[..., None], half: Callable[[Any, ev.Event], None]) -> Callable[..., None]:
    plan = Plan(target)

    def killing(self: Any, event: ev.Event, **options: Any) -> None:
        how = plan.now(event)
        if how == "inside":
            half(self, event)
        if how in ("before", "inside"):
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, event, **options)
        if how == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    return killing


def _half_line(journal: Any, event: ev.Event) -> None:
    line = ev.encode(event)
    os.write(journal._fd, line[: len(line) // 2])


def _half_frame(sender: Any, event: ev.Event) -> None:
    os.write(sender._fd, b"\n%b %d %b" % (sender._mark, sender._number + 1, ev.encode(event)[:20]))


def install() -> None:
    Journal.append = wrap("supervisor", Journal.append, _half_line)  # type: ignore[method-assign]
    Sender.send = wrap("worker", Sender.send, _half_frame)  # type: ignore[method-assign]
