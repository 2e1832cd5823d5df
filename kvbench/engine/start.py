"""Starting, resuming, following and stopping runs, for the command line and for Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from kvbench import errors
from kvbench.engine import strays
from kvbench.engine.journal import RunFolder
from kvbench.engine.plan import complete, plan, refuse_taken
from kvbench.errors import ExitCode, KvbenchError, RunBusy, RunFailed
from kvbench.record import events as ev
from kvbench.record import results
from kvbench.record.state import RunState, apply
from kvbench.spec import RunSpec

POLL = 0.1
STOP_WITHIN = 20.0
DEFAULT_OUTPUT = Path("bench_results")


def create(spec: RunSpec, output_dir: Path = DEFAULT_OUTPUT, name: str | None = None) -> RunFolder:
    """A folder for a run that can be done: every name and combination is checked first.

    Raises:
        UsageError: the specification, the name or the folder cannot be used.
    """
    spec = complete(spec)
    plan(spec)
    return RunFolder.create(spec, output_dir, name)


def launch(folder: RunFolder) -> None:
    """Start a supervisor in a session of its own: it outlives the terminal and this process.

    It inherits the lock, so from here on the run is alive until it is over or killed.

    Raises:
        RunBusy: the run is alive already.
    """
    lock = folder.acquire()
    command = [sys.executable, "-P", "-m", "kvbench.engine.supervisor", str(folder.path.resolve()), str(lock)]
    try:
        with folder.log.open("ab") as log:
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock,), start_new_session=True,
                env={**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"},  # the log's, whatever the terminal's is
            )  # fmt: skip
    finally:
        os.close(lock)


def resume(folder: RunFolder) -> Literal["attached", "resumed", "finished"]:
    """Go on with a run where it was; one that is alive is left to go on, one that is finished stays as it is.

    Raises:
        ResultError: the folder's journal or specification cannot be read.
    """
    if folder.is_alive():
        return "attached"
    if folder.state().status == "finished":
        return "finished"
    plan(folder.spec())
    try:
        launch(folder)
    except RunBusy:
        return "attached"
    return "resumed"


def follow(folder: RunFolder) -> Iterator[tuple[RunState, ev.Event]]:
    """Every event with the state after it, as they come, until no supervisor holds the run any more."""
    tail, state = folder.tail(), RunState()
    while True:
        alive = folder.is_alive()  # asked before reading, so that nothing written before the end is missed
        for event in tail.poll():
            state = apply(state, event)
            yield state, event
        if not alive:
            break
        time.sleep(POLL)
    if not state.is_over:
        tidy(folder)


def tidy(folder: RunFolder) -> None:
    """End what a supervisor that was killed left behind; nothing where the run is alive or its folder gone."""
    try:
        lock = folder.acquire(patience=0.0)
    except (RunBusy, OSError):
        return
    try:
        strays.sweep(folder.path)
    finally:
        os.close(lock)


def stop(folder: RunFolder) -> None:
    """Ask the run to end cleanly and wait until it has; what is finished stays.

    Raises:
        RunBusy: it did not end.
    """
    deadline, asked = time.monotonic() + STOP_WITHIN, False
    while folder.is_alive():
        pid = folder.pid()
        if pid is not None and not asked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            asked = True
        if time.monotonic() > deadline:
            raise RunBusy(f"{folder.path} is still being written by process {pid}", hint=f"kill {pid}")
        time.sleep(POLL / 2)


def failure(folder: RunFolder, state: RunState) -> KvbenchError | None:
    """What kept a run that is over from finishing, or ``None``."""
    if state.status == "finished":
        return None
    again = f"kvbench run --resume {folder.path}"
    if state.status == "failed":
        cls = _ERRORS.get(state.exit_code or 0, KvbenchError)
        error = cls(state.error or "the run failed", hint=state.hint or again)
        error.exit_code = ExitCode(state.exit_code) if state.exit_code in _FAILURES else ExitCode.RUN_FAILED
        return error
    if state.status == "interrupted":
        return RunFailed(f"the run was interrupted: {state.error}", hint=again)
    if not folder.has_question():
        return RunFailed(f"the run's folder {folder.path} was deleted or moved: its processes end with it", hint="start a new run")
    return RunFailed(f"the run's process was killed; see {folder.log}", hint=again)


_ERRORS: dict[int, type[KvbenchError]] = {
    int(cls.exit_code): cls
    for cls in (errors.UsageError, errors.ModelError, errors.CorpusError, errors.ResourceError, errors.ResultError, errors.RunFailed)
}

_FAILURES = {int(code) for code in ExitCode} - {ExitCode.OK, ExitCode.THRESHOLD}
"""What a journal may say that a run ended with."""


def run(spec: RunSpec, *, output_dir: str | Path = DEFAULT_OUTPUT, name: str | None = None) -> dict[str, Any]:
    """Run ``spec`` in processes of its own and return the result, as ``result.json`` has it.

    Args:
        spec: The question. Without methods it asks for all; without evaluators for perplexity, speed and memory.
        output_dir: Where the run's folder is made. name: The folder's name; by default time and model.

    Raises:
        KvbenchError: what a ``kvbench run`` would have said.
    """
    refuse_taken(spec.methods, spec.evaluators)
    folder = create(spec, Path(output_dir), name)
    try:
        launch(folder)
        for _ in follow(folder):
            pass
    except KeyboardInterrupt:
        stop(folder)
        raise
    error = failure(folder, folder.state())
    if error is not None:
        raise error
    return results.load(folder.path)
