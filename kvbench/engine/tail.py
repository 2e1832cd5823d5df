"""The readers' end of a journal: whole lines only, as far as they can be believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kvbench.engine.soundness import Inspector
from kvbench.errors import KvbenchError, ResultError
from kvbench.files import without_mark
from kvbench.record import events as ev
from kvbench.record.collecting import uncollected

SCHEMA = 1
"""Version of the journal's events."""


class Tail:
    """A reader that returns, at each poll, the events that were written since the last one.

    Args:
        path: The journal. plan_again: Makes its first event anew where that line is lost; without it such a journal is refused.
    """

    def __init__(self, path: Path, plan_again: Callable[[float], ev.RunStarted] | None = None) -> None:
        self._path, self._offset, self._lines = path, 0, 0
        self._plan_again = plan_again
        self._inspector = Inspector(self._first_event)

    @property
    def damage(self) -> str | None:
        """What could not be read so far and what that costs, or ``None``."""
        return self._inspector.summary()

    def poll(self) -> list[ev.Event]:
        """New events, oldest first; a line without its newline is left for later, and one that cannot be read is left out.

        Raises:
            ResultError: nothing can be read: there is no plan, or the file is no file.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ResultError(f"{self._path} cannot be read: {error.strerror}", hint="start a new run") from error
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        found: list[ev.Event] = []
        with uncollected():
            for line in whole.split(b"\n")[:-1]:
                self._read(line, found)
        found.extend(self._inspector.tell())
        return found

    def _read(self, line: bytes, found: list[ev.Event]) -> None:
        self._lines += 1
        try:
            event = ev.decode(line if self._lines > 1 else without_mark(line))
        except ResultError as error:
            self._inspector.lose(self._lines, error.message)
            return
        if isinstance(event, ev.RunStarted) and event.schema != SCHEMA:
            raise ResultError(f"{self._path} has journal schema {event.schema}; this kvbench reads {SCHEMA}", hint="start a new run")
        self._inspector.take(self._lines, event, found)

    def _first_event(self, at: float) -> ev.RunStarted:
        """The plan again, where its line is lost.

        Raises:
            ResultError: it cannot be made.
        """
        where = f"{self._path}, line {self._inspector.damaged[0]}"
        if self._plan_again is None:
            raise ResultError(f"{where}: {self._inspector.reason}", hint="start a new run")
        try:
            return self._plan_again(at)
        except KvbenchError as error:
            said = f"{where}: {self._inspector.reason}; its plan cannot be made again: {error.message}"
            raise ResultError(said, hint="start a new run") from error
