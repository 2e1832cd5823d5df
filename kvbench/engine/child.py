"""The worker as its supervisor sees it: a process, a pipe of event lines, and an end."""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

from kvbench.engine import strays
from kvbench.engine.journal import RunFolder
from kvbench.engine.pipe import PIPE_LOST, Receiver
from kvbench.engine.runlog import RunLog
from kvbench.record import events as ev

GRACE = 5.0
"""Seconds between asking a worker to end and killing it."""
TRACE_WITHIN = 0.5
"""Seconds that a worker has to write where it is."""
BLOCK, BLOCKS = 1 << 20, 16
"""Bytes that one read takes at most, and reads in a row: a pipe that is never empty must not keep its reader."""


class Child:
    """One worker process. Its events come over a descriptor of their own; what it prints goes to ``run.log``."""

    def __init__(self, folder: RunFolder) -> None:
        mark = secrets.token_hex(8)
        log = RunLog(folder.log)
        self.fd, out = os.pipe()
        printed, prints = os.pipe()
        os.set_blocking(self.fd, False)
        command = [sys.executable, "-P", "-u", "-m", "kvbench.engine.worker", str(folder.path), str(out), str(os.getpid()), mark]
        environment = {**os.environ, strays.MARK: strays.mark(folder.path)}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=prints, stderr=prints, pass_fds=(out,), process_group=0, env=environment
            )  # fmt: skip
        finally:
            os.close(out)
            os.close(prints)
        self._log = log.follow(printed)
        self._receiver = Receiver(mark)
        self._was_cut = False
        self.pid = self._process.pid

    def read(self) -> list[ev.Event]:
        """Whole lines that came so far; what a dying worker left of a line is never one."""
        found: list[ev.Event] = []
        for _ in range(BLOCKS):
            try:
                block = os.read(self.fd, BLOCK)
            except BlockingIOError:
                break
            if not block:
                self._reap()
                break
            found += self._receiver.feed(block)
        return found

    def has_ended(self) -> bool:
        """Whether the process itself is gone; a grandchild may still hold the pipe."""
        return self._process.poll() is not None

    @property
    def is_torn(self) -> bool:
        """An event was lost on the way, so that what it measures has a hole."""
        return self._receiver.is_torn

    def is_stopped(self) -> bool:
        """Whether a signal holds it, so that its time does not count."""
        import psutil

        with suppress(psutil.Error):
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        return False

    @property
    def reason(self) -> str:
        """How it ended, in words."""
        code = self._process.returncode
        if self.is_torn:
            return "something else wrote into its event pipe"
        if self._was_cut or code == PIPE_LOST:
            return "its event pipe was closed"
        if code is None or code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"{name}: killed, perhaps for want of memory" if self.was_killed else name

    @property
    def was_killed(self) -> bool:
        """By SIGKILL, which may have come from anywhere: no proof against what it was doing."""
        return self._process.returncode == -signal.SIGKILL and not self._was_cut and not self.is_torn

    def stop(self) -> list[ev.Event]:
        """End it with everything it started: ask, wait, kill. Returns what it said last."""
        said: list[ev.Event] = []
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while not self.has_ended() and time.monotonic() < deadline:
            said += self.read()
            time.sleep(0.02)
        self.kill()
        return [*said, *self.read(), *self._receiver.tally()]

    def kill(self) -> None:
        """End it and all that it started, now."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        strays.end_descendants()

    def trace(self) -> None:
        """Have it write to its log where each of its threads is."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
        time.sleep(TRACE_WITHIN)

    def wait_readable(self, timeout: float) -> None:
        """Sleep until it says something or ends, at most ``timeout`` seconds."""
        if not self.has_ended():
            select.select([self.fd], [], [], timeout)

    def close(self) -> None:
        """Nothing more is heard of it; what it printed last is in the log."""
        os.close(self.fd)
        self._log.join(GRACE)

    def _reap(self) -> None:
        """The pipe is closed, so it can say nothing more: it has moments left to end by itself."""
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._was_cut = True
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)
