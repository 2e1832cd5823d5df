"""The engine within this process: a real supervisor, journal and worker's work, without the seconds that interpreters take to start.

For tests of what runs measure and of what commands say. How processes end, and that nothing of one reaches another, is tested
with processes (``test_supervisor.py``, ``test_hostile_methods.py``).
"""

from __future__ import annotations

import os
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvbench.engine import start, supervisor, worker
from kvbench.engine.journal import RunFolder
from kvbench.engine.telling import Emitter
from kvbench.errors import KvbenchError
from kvbench.record import events as ev
from kvbench.record.state import replay
from kvbench.spec import RunSpec


class WorkerAtHand:
    """In place of a worker's process: it has done all its work when it is first listened to. What breaks it is the test's."""

    is_torn = was_killed = False

    def __init__(self, folder: RunFolder) -> None:
        self.pid = os.getpid()
        self._folder, self._said = folder, list[ev.Event]()

    def wait_readable(self, timeout: float) -> None:
        told = self._folder.read()
        emit = Emitter(SimpleNamespace(send=lambda event: self._said.append(ev.decode(ev.encode(event)))))  # type: ignore[arg-type]
        try:
            with self._folder.log.open("a") as log, redirect_stdout(log), redirect_stderr(log):
                worker.work(replay(told), emit, worker.broken_together(told))
        except KvbenchError as error:
            emit(ev.RunFailed(time.time(), error.message, error.hint, int(error.exit_code)))

    def read(self) -> list[ev.Event]:
        said, self._said = self._said, []
        return said

    def has_ended(self) -> bool:
        return True

    def is_stopped(self) -> bool:
        return False

    def stop(self) -> list[ev.Event]:
        return []

    def kill(self) -> None: ...

    def close(self) -> None: ...


def launch(folder: RunFolder) -> None:
    """Own the run here and now; it is over when this returns."""
    lock = folder.acquire()
    try:
        with folder.writer() as journal:
            supervisor.Supervisor(folder, journal).run()
    finally:
        os.close(lock)


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Put what is here in place of the processes."""
    patch.setattr(start, "launch", launch)
    patch.setattr(supervisor, "Child", WorkerAtHand)
    patch.setattr(worker, "keep_for_good", lambda: None)  # of a test's process it would be all tests' garbage


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test are done in its own process."""
    stand_in(monkeypatch)


def calm_run(spec: RunSpec, output: Path, name: str | None = None) -> dict[str, Any]:
    """The result of ``spec`` where nothing disturbs it."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        return start.run(spec, output_dir=output, name=name)
