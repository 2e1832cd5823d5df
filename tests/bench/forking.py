"""Processes forked from one that has imported what is dear, each held to a limit of CPU seconds."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def spent(*whose: int) -> float:
    """CPU seconds of ``resource``'s kinds of processes, so far."""
    return sum(sum(resource.getrusage(who)[:2]) for who in whose)


def forked(tree: Path, action: Callable[[], int], limit: float) -> tuple[str, float]:
    """``action``'s fate (0 is ``survived``) and CPU seconds in a process of its own, which finds kvbench in ``tree``."""
    before = spent(resource.RUSAGE_CHILDREN)
    child = os.fork()
    if not child:
        code = 1
        try:
            _enter(tree, int(limit))
            code = action()
        finally:
            os._exit(code)
    status = _waited(child, 60 + 8 * limit)
    seconds = spent(resource.RUSAGE_CHILDREN) - before
    if status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return "timeout", seconds
    return "survived" if status == 0 else "killed", seconds


def _enter(tree: Path, limit: int) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("kvbench", "tests")]:
        del sys.modules[name]  # this checkout's, which the scripts beside this one have loaded
    sys.dont_write_bytecode = True
    os.environ["PYTHONPATH"] = str(tree)
    log = os.open(tree / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _waited(child: int, seconds: float) -> int | None:
    """How ``child`` ended; none where it slept for so long that it was ended, with all that it started."""
    until, status = time.monotonic() + seconds, None
    while status is None and time.monotonic() < until:
        found, code = os.waitpid(child, os.WNOHANG)
        status = code if found else None
        time.sleep(0 if found else 0.05)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    return status
