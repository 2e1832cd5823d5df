"""How a worker's events cross to its supervisor, on a pipe that others' code in the worker can reach too.

An event is one line: the worker's mark, its number, its JSON; a newline before it ends whatever junk stands there. Lines
without the mark are nobody's and cost a note. Numbers that do not follow each other tell that an event was torn: then
nothing of this worker can be believed any more.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator

from kvbench.errors import ExitCode, ResultError
from kvbench.record import events as ev

LINE_MOST = 16 << 20
"""Bytes of a line that are kept while its end has not come: many times the longest event."""
EVENT_MOST = LINE_MOST - 1024
"""Bytes of an event, for which there is always room in a line."""
JUNK_TOLD = 5
"""Lines of junk from one worker that have a note of their own."""
PIPE_LOST = 74
"""Exit code of a worker that cannot reach its supervisor any more."""


class Sender:
    """The worker's end. Where its pipe is gone, closed or another file by now, the process ends at once.

    Args:
        fd: Of the pipe. mark: What tells its lines from others'.
    """

    def __init__(self, fd: int, mark: str) -> None:
        self._fd, self._mark, self._number = fd, mark.encode(), 0
        self._owner, self._file = os.getpid(), _identity(fd)

    def send(self, event: ev.Event) -> None:
        """Tell an event.

        Raises:
            TypeError, ValueError: it holds what no line can, or too much; nothing was sent.
        """
        if os.getpid() != self._owner:  # a fork of the worker that went on as if it were the worker
            os._exit(ExitCode.INTERNAL)
        text = ev.encode(event)  # before it has a number: one that cannot be written is no hole
        if len(text) > EVENT_MOST:
            raise ValueError(f"{len(text):,} bytes are more than one event may have ({EVENT_MOST:,})")
        self._number += 1
        line = memoryview(b"\n%b %d %b" % (self._mark, self._number, text))
        try:
            while line:
                if _identity(self._fd) != self._file:
                    raise OSError("the descriptor of the event pipe is another file's now")
                line = line[self._write(line) :]
        except BrokenPipeError:  # the supervisor is gone
            os._exit(ExitCode.INTERNAL)
        except OSError as error:
            print(f"the event pipe was taken from this worker: {error}", file=sys.stderr, flush=True)
            os._exit(PIPE_LOST)

    def _write(self, line: memoryview) -> int:
        try:
            return os.write(self._fd, line)
        except BlockingIOError:  # somebody made it non-blocking
            select.select([], [self._fd], [])
            return 0


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


class Receiver:
    """The supervisor's end: bytes in, events out; junk comes out as notes.

    Attributes:
        is_torn: An event of the worker did not come whole.
    """

    def __init__(self, mark: str) -> None:
        self._mark, self._next, self._rest, self._junk = mark.encode() + b" ", 1, b"", 0
        self._skips = False
        self.is_torn = False

    def feed(self, data: bytes) -> Iterator[ev.Event]:
        """The events that ``data`` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line and not self._skips and not self.is_torn:
                yield from self._read(line)
            self._skips = False
        if len(self._rest) > LINE_MOST:
            yield from self._tell(self._rest)
            self._rest, self._skips = b"", True

    def tally(self) -> Iterator[ev.Event]:
        """What is left to say at the worker's end."""
        if self._junk > JUNK_TOLD:
            yield _note(f"{self._junk - JUNK_TOLD} more lines on the worker's event pipe were no events")

    def _read(self, line: bytes) -> Iterator[ev.Event]:
        if not line.startswith(self._mark):
            yield from self._tell(line)
            return
        number, _, event = line[len(self._mark) :].partition(b" ")
        try:
            if int(number) == self._next:
                yield ev.decode(event)
            elif int(number) > self._next:
                self.is_torn = True
            self._next = max(self._next, int(number) + 1)
        except (ValueError, ResultError):
            self.is_torn = True

    def _tell(self, line: bytes) -> Iterator[ev.Event]:
        self._junk += 1
        if self._junk <= JUNK_TOLD:
            yield _note(f"a line on the worker's event pipe was no event: {line[:60]!r}")


def _note(text: str) -> ev.NoteWritten:
    return ev.NoteWritten(time.time(), text, "warning")
