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
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from kvbench import version
from kvbench.engine import strays
from kvbench.engine.child import Child
from kvbench.engine.deadlines import Flight, Limits
from kvbench.engine.journal import SCHEMA, Journal, RunFolder
from kvbench.engine.plan import plan, units_left
from kvbench.errors import ExitCode, KvbenchError, ResultError, told
from kvbench.models.telemetry import Sampler
from kvbench.record import events as ev
from kvbench.record import results
from kvbench.record.state import RunState, apply, replay
from kvbench.spec import BASELINE

POLL = 0.2
TELEMETRY_EVERY = 1.0
STOPPED = 10.0
"""Seconds between two samples from which on this process was itself stopped or asleep."""
DEATHS_TO_BLAME = 2
"""Crashes at the same place that are blamed on it; SIGKILL may come from outside and is believed one later."""
PATIENCE_WITH_ALL = 2
"""Times that the baseline, or a unit without a method in flight, may be late."""
TOO_LONG = "too long"
"""Kind of the failure of a method that was late."""
IDENTITY = ("weights_hash", "dtype", "cache_dtype", "content_hash", "tokens_hash")
"""Facts of model and corpus that numbers of one run must share."""
FINAL = (ev.RunFinished, ev.RunFailed, ev.RunInterrupted)


class Supervisor:
    """Drives one run to its end. ``state`` is always the fold of the journal."""

    def __init__(self, folder: RunFolder, journal: Journal) -> None:
        self.folder, self._journal = folder, journal
        self._told: Sequence[ev.Event] = folder.read()
        self.state: RunState = replay(self._told)
        self._must_end: str | None = None
        self._failure: ev.RunFailed | None = None
        self._deaths: Counter[tuple[str | None, str | None]] = Counter()
        self._overdue: Counter[str] = Counter()
        self._workers = 0

    def request_stop(self, number: int, _frame: FrameType | None = None) -> None:
        self._must_end = f"stopped by {signal.Signals(number).name}"

    def run(self) -> None:
        """From wherever the journal is to a final event."""
        self._begin()
        assert self.state.spec is not None
        self._limits = Limits(self.state.spec.method_timeout, self.state.units)
        self._limits.replay(self._told)
        self._told = []
        while units_left(self.state) and not self._is_over():
            self._run_worker()
        if self._must_end:
            self._write(ev.RunInterrupted(time.time(), self._must_end))
        else:
            self._end(self._failure or verdict(self.state))

    def fail(self, error: BaseException) -> None:
        """Journal an error of the supervisor's own."""
        known = error if isinstance(error, KvbenchError) else None
        text = known.message if known else f"{type(error).__name__}: {told(error)} (traceback in {self.folder.log.name})"
        code = known.exit_code if known else ExitCode.INTERNAL
        self._write(ev.RunFailed(time.time(), text, known.hint if known else None, int(code)))

    def _begin(self) -> None:
        if not self.state.units:
            made = plan(self.folder.spec())
            units = [unit.to_plain() for unit in made.units]
            self._write(ev.RunStarted(time.time(), made.spec.to_plain(), units, list(made.methods), version.own(), SCHEMA))
            for note in made.spec.notes:
                self._write(ev.NoteWritten(time.time(), note, "warning"))
            return
        begun = self.state.kvbench_version or self.state.environment.get("kvbench") or "of an unknown version"
        if begun != version.own():
            raise ResultError(
                f"this run was begun by kvbench {begun}; numbers of this {version.own()} must not mix with its",
                hint="start a new run",
            )
        self._write(ev.RunResumed(time.time(), len(self.state.done)))
        left = strays.sweep(self.folder.path)
        if left:
            self._write(ev.NoteWritten(time.time(), f"ended {left} processes that were left of this run", "warning"))

    def _is_over(self) -> bool:
        """Asked, or failed, or without a folder to write to."""
        if not self._must_end and not self.folder.is_there(self._journal):
            self._must_end = "the run's folder was deleted or moved"
        return bool(self._must_end or self._failure)

    def _run_worker(self) -> None:
        child = Child(self.folder)
        self._workers += 1
        try:
            self._write(ev.WorkerStarted(time.time(), child.pid, self._workers))
            late = self._listen(child)
            flight = self._limits.flight
            if late is not None:
                self._cut_off(child, late)
                return
            for event in child.stop():
                self._hear(event)
            if not self._is_over() and units_left(self.state):
                self._mourn(child, flight)
        finally:
            child.kill()
            child.close()
            self._limits.worker_ended()

    def _listen(self, child: Child) -> str | None:
        """Journal what the worker says until it ends, or must; returns what it was late with, if that is why."""
        sampler, device, due = None, None, time.monotonic()
        while not self._is_over():
            ended = child.has_ended()  # asked before reading, so that nothing said before the end is missed
            child.wait_readable(POLL)
            for event in child.read():
                self._hear(event)
            if ended or child.is_torn:
                return None
            now = time.monotonic()
            if now >= due:
                if sampler is None or device != self._device():
                    device = self._device()
                    sampler = Sampler(device, child.pid)
                self._write(ev.TelemetrySampled(time.time(), **asdict(sampler.sample())))
                passed = now - due + TELEMETRY_EVERY
                if child.is_stopped() or passed > STOPPED:
                    self._limits.forgive(passed)
                due = now + TELEMETRY_EVERY
            late = self._limits.overdue(now)
            if late is not None:
                return late
        return None

    def _device(self) -> str | None:
        """Where the model is, once it is known; before that, where it was asked to be."""
        asked = self.state.spec.model.device if self.state.spec else "auto"
        device = str(self.state.model.get("device") or asked)
        return None if device == "auto" else device

    def _hear(self, event: ev.Event) -> None:
        """A worker's ending is held back until the partial result is written; all else is journaled at once."""
        self._limits.hear(event, time.monotonic())
        if isinstance(event, ev.RunFailed):
            self._failure = self._failure or event
            return
        self._failure = self._failure or _changed(self.state, event)
        if not self._failure:
            self._write(event)

    def _cut_off(self, child: Child, late: str) -> None:
        """End a worker that is late. The method in flight fails; what is nobody's alone is tried once more, each method alone."""
        flight, now = self._limits.flight, time.time()
        assert flight is not None
        child.trace()
        child.kill()
        self._write(ev.WorkerDied(now, f"ended: it {late}", flight.unit, flight.method))
        if flight.method not in (None, BASELINE):
            self._write(ev.MethodFailed(now, flight.unit, str(flight.method), f"it {late}", TOO_LONG))
            return
        self._overdue[flight.unit] += 1
        if self._overdue[flight.unit] < PATIENCE_WITH_ALL:
            return
        if flight.method is None:
            self._write(ev.UnitLost(now, flight.unit, f"it {late}"))
        else:
            self._failure = ev.RunFailed(now, f"the baseline in {flight.unit} {late}", None, int(ExitCode.RUN_FAILED))

    def _mourn(self, child: Child, flight: Flight | None) -> None:
        """A worker died with work left: retry, then blame the method in flight, then leave the unit out."""
        unit, method = (flight.unit, flight.method) if flight is not None else (None, None)
        now = time.time()
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
    strays.adopt_orphans()
    with folder.writer() as journal:
        supervisor = Supervisor(folder, journal)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, supervisor.request_stop)
        try:
            supervisor.run()
        except (Exception, SystemExit) as error:  # evaluators make figures here, and may be others' code
            traceback.print_exc()
            supervisor.fail(error)
    return supervisor.state.exit_code or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
