"""The run's owner: starts workers, writes the journal, and goes on when a worker dies.

Runs as ``python -m kvbench.engine.supervisor RUN_FOLDER [LOCK_FD]`` in a session of its own, without torch. It is
the only writer of the journal, so the journal is in one order; it may itself be killed at any moment, and
the next supervisor goes on from what is written.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import kvbench
from kvbench import events as ev
from kvbench import results
from kvbench.engine.child import Child
from kvbench.engine.journal import SCHEMA, Journal, RunFolder
from kvbench.engine.plan import plan, units_left
from kvbench.errors import ExitCode, KvbenchError, ResultError
from kvbench.evaluators.base import BASELINE
from kvbench.state import RunState, apply
from kvbench.telemetry import Sampler

POLL = 0.2
TELEMETRY_EVERY = 1.0
DEATHS_TO_BLAME = 2
"""Crashes at the same place that are blamed on it; SIGKILL may come from outside and is believed one later."""
IDENTITY = ("weights_hash", "dtype", "cache_dtype", "content_hash", "tokens_hash")
"""Facts of model and corpus that numbers of one run must share."""
FINAL = (ev.RunFinished, ev.RunFailed, ev.RunInterrupted)


class Supervisor:
    """Drives one run to its end. ``state`` is always the fold of the journal."""

    def __init__(self, folder: RunFolder, journal: Journal) -> None:
        self.folder, self._journal = folder, journal
        self.state: RunState = folder.state()
        self._signalled: str | None = None
        self._failure: ev.RunFailed | None = None
        self._deaths: Counter[tuple[str | None, str | None]] = Counter()
        self._workers = 0

    def request_stop(self, number: int, _frame: FrameType | None = None) -> None:
        self._signalled = signal.Signals(number).name

    def run(self) -> None:
        """From wherever the journal is to a final event."""
        self._begin()
        while units_left(self.state) and not self._signalled and not self._failure:
            self._run_worker()
        if self._signalled:
            self._write(ev.RunInterrupted(time.time(), f"stopped by {self._signalled}"))
        else:
            self._end(self._failure or verdict(self.state))

    def fail(self, error: BaseException) -> None:
        """Journal an error of the supervisor's own."""
        known = error if isinstance(error, KvbenchError) else None
        text = known.message if known else f"{type(error).__name__}: {error} (traceback in {self.folder.log.name})"
        code = known.exit_code if known else ExitCode.INTERNAL
        self._write(ev.RunFailed(time.time(), text, known.hint if known else None, int(code)))

    def _begin(self) -> None:
        if not self.state.units:
            made = plan(self.folder.spec())
            units = [unit.to_plain() for unit in made.units]
            self._write(ev.RunStarted(time.time(), made.spec.to_plain(), units, list(made.methods), kvbench.__version__, SCHEMA))
            for note in made.spec.notes:
                self._write(ev.NoteWritten(time.time(), note, "warning"))
            return
        begun = self.state.kvbench_version or self.state.environment.get("kvbench") or "of an unknown version"
        if begun != kvbench.__version__:
            raise ResultError(
                f"this run was begun by kvbench {begun}; numbers of this {kvbench.__version__} must not mix with its",
                hint="start a new run",
            )
        self._write(ev.RunResumed(time.time(), len(self.state.done)))

    def _run_worker(self) -> None:
        child = Child(self.folder)
        self._workers += 1
        try:
            self._write(ev.WorkerStarted(time.time(), child.pid, self._workers))
            self._listen(child)
            if self._signalled or self._failure:
                for event in child.stop():
                    self._hear(event)
            elif units_left(self.state):
                self._mourn(child)
        finally:
            child.stop()
            child.close()

    def _listen(self, child: Child) -> None:
        """Journal what the worker says until it ends, or must."""
        sampler, device, due = None, None, time.monotonic()
        while not self._signalled and not self._failure:
            ended = child.has_ended()  # asked before reading, so that nothing said before the end is missed
            child.wait_readable(POLL)
            for event in child.read():
                self._hear(event)
            if ended:
                return
            if time.monotonic() >= due:
                if sampler is None or device != self._device():
                    device = self._device()
                    sampler = Sampler(device, child.pid)
                self._write(sampler.sample())
                due = time.monotonic() + TELEMETRY_EVERY

    def _device(self) -> str | None:
        """Where the model is, once it is known; before that, where it was asked to be."""
        asked = self.state.spec.model.device if self.state.spec else "auto"
        device = str(self.state.model.get("device") or asked)
        return None if device == "auto" else device

    def _hear(self, event: ev.Event) -> None:
        """A worker's ending is held back until the partial result is written; all else is journaled at once."""
        if isinstance(event, ev.RunFailed):
            self._failure = event
            return
        self._failure = self._failure or _changed(self.state, event)
        if not self._failure:
            self._write(event)

    def _mourn(self, child: Child) -> None:
        """A worker died with work left: retry, then blame the method in flight, then leave the unit out."""
        unit, method, now = self.state.current_unit, self.state.current_method, time.time()
        self._write(ev.WorkerDied(now, child.reason, unit, method))
        self._deaths[unit, method] += 1
        deaths, patience = self._deaths[unit, method], DEATHS_TO_BLAME + child.was_killed
        times = f"{deaths} times ({child.reason}); see {self.folder.log.name}"
        if unit is not None and method not in (None, BASELINE) and deaths >= patience:
            self._write(ev.MethodFailed(now, unit, str(method), f"the worker died in it {times}", "crash"))
        elif unit is not None and deaths > patience:
            self._write(ev.UnitLost(now, unit, f"the worker died in it {times}"))
        elif deaths > patience:
            self._failure = ev.RunFailed(now, f"the worker died before its first unit {times}", None, int(ExitCode.RUN_FAILED))

    def _end(self, failure: ev.RunFailed | None) -> None:
        """The result file first, whole; then the event that says it is there."""
        final = failure or ev.RunFinished(time.time(), self.folder.result.name, self.state.elapsed)
        if not failure or self.state.records:
            results.save(results.build(apply(self.state, final), self.folder.name), self.folder.result)
        self._write(final)

    def _write(self, event: ev.Event) -> None:
        self._journal.append(event, sync=isinstance(event, (ev.UnitFinished, *FINAL)))
        self.state = apply(self.state, event)
        if isinstance(event, ev.UnitFinished):
            self._deaths[None, None] = 0


def verdict(state: RunState) -> ev.RunFailed | None:
    """Why a run that did all its units still has no usable result, or ``None``."""
    rivals = [row for label, row in state.methods.items() if label != BASELINE] or list(state.methods.values())
    useful = [row for row in rivals if row.status != "failed" and row.units_done]
    baseline = state.methods.get(BASELINE)
    if useful and baseline is not None and baseline.status != "failed" and baseline.units_done:
        return None
    why = next((row.error for row in rivals if row.error), None) or next(iter(state.lost.values()), "nothing was measured")
    return ev.RunFailed(time.time(), f"no method could be measured: {why}", "kvbench verify METHOD", int(ExitCode.RUN_FAILED))


def _changed(state: RunState, event: ev.Event) -> ev.RunFailed | None:
    """A resumed run must measure the same weights and text as before."""
    before: Mapping[str, Any]
    if isinstance(event, ev.ModelLoaded):
        before, after, what = state.model, event.model, "model"
    elif isinstance(event, ev.CorpusLoaded):
        before, after, what = state.corpus, event.corpus, "corpus"
    else:
        return None
    changed = [key for key in IDENTITY if key in before and before[key] != after.get(key)]
    if not changed:
        return None
    text = f"the {what}'s {' and '.join(changed)} changed since this run began: its numbers must not mix"
    return ev.RunFailed(time.time(), text, "start a new run", int(ExitCode.RUN_FAILED))


def main(argv: list[str]) -> int:
    """Own the run in ``argv[0]``; ``argv[1]`` is an inherited descriptor that holds its lock."""
    folder = RunFolder(Path(argv[0]))
    lock = int(argv[1]) if len(argv) > 1 else folder.acquire()
    os.set_inheritable(lock, False)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    with folder.writer() as journal:
        supervisor = Supervisor(folder, journal)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, supervisor.request_stop)
        try:
            supervisor.run()
        except Exception as error:
            traceback.print_exc()
            supervisor.fail(error)
    return supervisor.state.exit_code or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
