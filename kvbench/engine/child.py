"""The worker as its supervisor sees it: a process, a pipe of event lines, and an end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

from kvbench import events as ev
from kvbench.engine.journal import RunFolder

GRACE = 5.0
"""Seconds between asking a worker to end and killing it."""


class Child:
    """One worker process. Its events come over a descriptor of their own; what it prints goes to ``run.log``."""

    def __init__(self, folder: RunFolder) -> None:
        self.fd, out = os.pipe()
        os.set_blocking(self.fd, False)
        command = [sys.executable, "-P", "-u", "-m", "kvbench.engine.worker", str(folder.path), str(out), str(os.getpid())]
        try:
            with folder.log.open("ab") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(out,), process_group=0
                )  # fmt: skip
        finally:
            os.close(out)
        self.pid = self._process.pid
        self._rest = b""

    def read(self) -> list[ev.Event]:
        """Whole lines that came so far; what a dying worker left of a line is never one."""
        while True:
            try:
                block = os.read(self.fd, 1 << 20)
            except BlockingIOError:
                break
            if not block:
                self._reap()
                break
            self._rest += block
        whole, newline, rest = self._rest.rpartition(b"\n")
        self._rest = rest
        return [ev.decode(line) for line in whole.split(b"\n") if line] if newline else []

    def has_ended(self) -> bool:
        """Whether the process itself is gone; a grandchild may still hold the pipe."""
        return self._process.poll() is not None

    @property
    def reason(self) -> str:
        """How it ended, in words."""
        code = self._process.returncode
        if code is None or code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"{name}: killed, perhaps for want of memory" if self.was_killed else name

    @property
    def was_killed(self) -> bool:
        """By SIGKILL, which may have come from anywhere: no proof against what it was doing."""
        return self._process.returncode == -signal.SIGKILL

    def stop(self) -> list[ev.Event]:
        """End it with everything it started: ask, wait, kill. Returns what it said last."""
        said: list[ev.Event] = []
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while not self.has_ended() and time.monotonic() < deadline:
            said += self.read()
            time.sleep(0.02)
        self._signal(signal.SIGKILL)
        self._process.wait()
        return said + self.read()

    def wait_readable(self, timeout: float) -> None:
        """Sleep until it says something or ends, at most ``timeout`` seconds."""
        if not self.has_ended():
            select.select([self.fd], [], [], timeout)

    def close(self) -> None:
        os.close(self.fd)

    def _reap(self) -> None:
        """The pipe is closed, so it can say nothing more: it has moments left to end by itself."""
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)
