"""Processes that a worker leaves behind: children of a method that started a session of their own, so that no signal finds them.

On Linux the supervisor is the one that orphans below it fall to, so it finds them while it lives. Where it was killed itself, the
run's mark in their environment tells whose they were.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

MARK = "KVBENCH_RUN"
"""Environment variable of a worker and of all that it starts: the run's folder."""
WITHIN = 5.0
"""Seconds in which what is killed should be gone; something that forks faster than it is killed is given up."""
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_descendants() -> None:
    """Kill and collect every process below this one."""
    import psutil

    this, deadline = psutil.Process(), time.monotonic() + WITHIN
    while (found := this.children(recursive=True)) and time.monotonic() < deadline:
        _kill(process.pid for process in found)
        for process in found:
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
        time.sleep(0.005)


def sweep(folder: Path) -> int:
    """Kill what an earlier supervisor of this run left; the caller holds the run's lock. Returns how many there were."""
    import psutil

    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = [pid for pid in psutil.pids() if pid not in ours and _mark_of(pid) == mark(folder)]
    _kill(found)
    return len(found)


def mark(folder: Path) -> str:
    """What tells processes of this run from others."""
    return str(folder.resolve())


def _mark_of(pid: int) -> str | None:
    import psutil

    try:
        found: str | None = psutil.Process(pid).environ().get(MARK)
        return found
    except (psutil.Error, OSError):
        return None


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
