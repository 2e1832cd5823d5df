"""``run.log``: what a worker and the libraries in it print, bounded in size."""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from pathlib import Path

MOST = 16 << 20
"""Bytes at which the middle of the log is left out."""
KEPT = 4 << 20
"""Bytes that are then kept of its beginning, and of its end."""
_LEFT_OUT = re.compile(rb"\n\[(\d+) bytes were left out here[^\n]*\n")


class RunLog:
    """The writer of a run's log. What cannot be written (the disk is full, the folder gone) is dropped: no run ends for its log."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, data: bytes) -> None:
        with suppress(OSError):
            size = os.fstat(self._fd).st_size
            os.pwrite(self._fd, data, size)
            if size + len(data) > MOST:
                self._leave_out(size + len(data))

    def follow(self, fd: int) -> threading.Thread:
        """Write all that comes from ``fd``, in a thread of its own, until no process can write to it any more."""
        thread = threading.Thread(target=self._drain, args=(fd,), name="run.log", daemon=True)
        thread.start()
        return thread

    def _drain(self, fd: int) -> None:
        while data := os.read(fd, 1 << 20):
            self.write(data)
        os.close(fd)
        os.close(self._fd)

    def _leave_out(self, size: int) -> None:
        """Keep the beginning and the end. The end is written before the file is cut, so that a kill in between loses nothing."""
        earlier = _LEFT_OUT.match(os.pread(self._fd, 200, KEPT))
        dropped = size - 2 * KEPT + (int(earlier[1]) - len(earlier[0]) if earlier else 0)
        end = os.pread(self._fd, KEPT, size - KEPT)
        note = b"\n[%d bytes were left out here: a run's log keeps its beginning and its end]\n" % dropped
        os.pwrite(self._fd, note + end, KEPT)
        os.ftruncate(self._fd, KEPT + len(note) + len(end))
