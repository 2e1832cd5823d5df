"""Lines on stderr while the run goes on, one for each finished unit; the table on stdout at its end."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TextIO

from kvbench.displays.base import Outcome
from kvbench.displays.ending import called, header, render_run
from kvbench.displays.streams import put
from kvbench.engine.journal import RunFolder
from kvbench.engine.start import follow
from kvbench.formats import TIMES, duration, fixed, size
from kvbench.metrics import factors
from kvbench.printable import printable
from kvbench.record import events as ev
from kvbench.record.state import RunState
from kvbench.record.summary import cache_dtype_of
from kvbench.spec.budgets import written

STAGE_STEP = 0.25
"""Fraction of a stage after which a line tells its progress where lines cannot be rewritten."""


class Plain:
    """For pipes, logs and small terminals. On a terminal a stage's progress is one line rewritten in place."""

    owns_terminal = False

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._rewrites = self._out.isatty()
        self._stage, self._told = "", -1.0
        self._open_line = False

    def watch(self, folder: RunFolder, *, live: bool) -> Outcome:
        for state, event in follow(folder):
            self.tell(state, event)
        self._close_line()
        return "over"

    def report(self, folder: RunFolder, state: RunState) -> None:
        try:
            if state.spec is not None and state.methods and (state.records or state.status == "finished"):
                put(render_run(state, called(folder)))
        finally:  # a table that cannot be written is no reason to hide where its figures are
            if folder.result.exists() and state.is_over:
                self._line(f"result: {folder.result}")

    def tell(self, state: RunState, event: ev.Event) -> None:
        """Write what ``event`` means to a reader, if anything."""
        if isinstance(event, ev.StageEntered):
            self._tell_stage(event)
        elif isinstance(event, ev.UnitFinished):
            self._line(_unit_line(state, event))
        else:
            for line in _lines(state, event):
                self._line(line)

    def _tell_stage(self, event: ev.StageEntered) -> None:
        part = event.done / event.total if event.total else 0.0
        text = f"{event.stage} {part:.0%}" if event.total else event.stage
        if self._rewrites:
            self._write(f"\r\033[K  {printable(text)}")
            self._open_line = True
        elif event.stage != self._stage or part >= self._told + STAGE_STEP:
            self._told = part
            self._line(f"  {text}")
        self._stage = event.stage

    def _line(self, text: str) -> None:
        self._close_line()
        self._write(f"{printable(text)}\n")

    def _close_line(self) -> None:
        """A stage's line makes room for the next one."""
        if self._open_line:
            self._write("\r\033[K")
        self._open_line = False

    def _write(self, text: str) -> None:
        """Talk; a terminal that is gone, or a file that is full, is no end of a run."""
        with suppress(OSError, ValueError):
            self._out.write(text)
            self._out.flush()


def _unit_line(state: RunState, event: ev.UnitFinished) -> str:
    unit = state.units[event.unit]
    number, total = len(state.done) + len(state.lost), len(state.units)
    left = f"  {duration(state.remaining)} left" if number < total and state.remaining is not None else ""
    name = f"{unit.evaluator} {unit.index + 1}"
    return f"  {number:>{len(str(total))}}/{total}  {name:<16} {len(unit.methods):>3} methods {event.seconds:>8.1f} s{left}"


def _lines(state: RunState, event: ev.Event) -> list[str]:
    if isinstance(event, ev.RunStarted):
        return [f"{len(event.methods)} methods, {len(event.units)} units"]
    if isinstance(event, ev.RunResumed):
        return [f"resumed: {event.done_units} of {len(state.units)} units were done"]
    if isinstance(event, ev.ModelLoaded):
        return header(state)[:1]
    if isinstance(event, ev.BudgetSolved):
        return [f"  {event.method} " + (f"failed: {event.error}" if event.error else _met(state, event))]
    if isinstance(event, ev.MethodFailed):
        return [f"  {event.method} failed: {event.error}"]
    if isinstance(event, ev.WorkerDied):
        return [f"  the worker died ({event.reason}); starting another"]
    if isinstance(event, ev.UnitLost):
        return [f"  {event.unit} is left out: {event.reason}"]
    if isinstance(event, ev.NoteWritten):
        if state.spec is not None and event.text in state.spec.notes:
            return []  # said before the run began
        return [f"  {event.text}"]
    return []


def _met(state: RunState, event: ev.BudgetSolved) -> str:
    factor = event.baseline_bytes / event.stored_bytes
    less = factors.titled(f"{fixed(factor, 2)}{TIMES} less", cache_dtype_of(state))
    return f"stores {size(event.stored_bytes)}, {less}, with {written(event.parameters) or 'nothing turned'}"
