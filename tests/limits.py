"""A limit of CPU seconds for each test, those of its processes included: a machine that is busy with other things fails nobody.

What hangs without computing is for ``--timeout``, in seconds of the clock, which is set so long that only a hang meets it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

import psutil
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu-limit", type=float, default=300.0, help="CPU seconds that a test may take, those of its processes included")


def pytest_configure(config: pytest.Config) -> None:
    watch = Watch(config.getoption("--cpu-limit"))
    config.pluginmanager.register(watch)
    watch.start()


class Watch(threading.Thread):
    """Looks on what is spent, a few times within the limit; beyond it the main thread is interrupted, and the test fails."""

    def __init__(self, limit: float) -> None:
        super().__init__(name="cpu limit", daemon=True)
        self.limit, self.every = limit, min(10.0, limit / 4)
        self.running: str | None = None
        self.found = 0.0
        signal.signal(signal.SIGPROF, self._interrupted)

    def run(self) -> None:
        watched, before = None, 0.0
        while True:
            threading.Event().wait(self.every)
            running, now = self.running, spent()
            if running is not watched:
                watched, before = running, now
            elif running is not None and now - before > self.limit:
                self.found, watched = now - before, None
                os.kill(os.getpid(), signal.SIGPROF)

    def _interrupted(self, *_: object) -> None:
        if self.running is not None:
            pytest.fail(f"{self.running} has taken {self.found:.1f} CPU seconds; the limit is {self.limit:g}", pytrace=False)

    @contextmanager
    def _watching(self, name: str) -> Generator[None]:
        self.running = name
        try:
            yield
        finally:
            self.running = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        with self._watching(f"setting up {item.nodeid}"):
            yield

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        with self._watching(item.nodeid):
            yield


def spent() -> float:
    """CPU seconds of this process and its children, those that have ended included, if they were waited for."""
    total = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            total += sum(child.cpu_times()[:4])
    return total
