"""What a method may do to the process that it runs in."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

FOREVER = 600.0


def hang() -> None:
    time.sleep(FOREVER)


def hang_in_c() -> None:
    """Holds the interpreter's lock, so that no Python code of this process runs any more."""
    ctypes.PyDLL(None).sleep(int(FOREVER))


def hang_deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(FOREVER)


def pipes() -> Iterator[int]:
    """Descriptors of pipes beyond the standard three."""
    for fd in range(3, 64):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
                yield fd
        except OSError:
            continue


JUNK = (
    b"garbage, not json\n",
    b'{"event":"RunFinished","at":1.0,"result":"result.json"}\n',
    b'{"event":"RecordMade","at":1.0,"unit":"counting/0","evaluator":"counting","method":"int8","key":"0","data":{}}\n',
    b"\xff\x00\x1b[31m\n" * 50,
    b"no newline at its end",
)


def junk() -> None:
    for fd in pipes():
        for line in JUNK:
            os.write(fd, line)


def tear() -> None:
    """Another thread writes into the pipe all the while: sooner or later inside an event."""

    def write(fd: int) -> None:
        while True:
            os.write(fd, b"x" * 7)

    for fd in pipes():
        threading.Thread(target=write, args=(fd,), daemon=True).start()
    sys.setswitchinterval(1e-6)


def close_descriptors() -> None:
    os.closerange(3, 200)


def replace_descriptors() -> None:
    """Puts files of its own where the worker's descriptors were."""
    os.closerange(3, 200)
    for _ in range(60):
        os.open(os.devnull, os.O_WRONLY)


def noise() -> None:
    for _ in range(16):
        sys.stdout.write("x" * (2 << 20) + "\n")


def daemon() -> None:
    """Processes in sessions of their own, one of them with an orphan's parent and none of the worker's environment."""
    sleep = [sys.executable, "-S", "-c", f"import time; time.sleep({FOREVER})", "kvbench-test-daemon"]
    subprocess.Popen(sleep, start_new_session=True)
    subprocess.Popen(
        ["/bin/sh", "-c", f'"{sys.executable}" -S -c "import time; time.sleep({FOREVER})" kvbench-test-daemon &'],
        env={},
        start_new_session=True,
    )
    subprocess.Popen(sleep)


def go_on_twice() -> None:
    """A fork that goes on as if it were the worker."""
    os.fork()


FAULTS: Mapping[str, Callable[[], None]] = {
    f.__name__: f for f in (hang, hang_in_c, hang_deaf, junk, tear, close_descriptors, replace_descriptors, noise, daemon, go_on_twice)
}
