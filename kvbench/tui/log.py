"""Which events are worth a line in the log pane, and how they read there."""

from __future__ import annotations

from kvbench.formats import duration
from kvbench.record import events as ev
from kvbench.record.events import NoteWritten
from kvbench.record.state import RunState


def line_of(event: ev.Event, before: RunState) -> NoteWritten | None:
    """The event as a note; ``None`` if the other panels show it already. ``before`` is the state it met."""
    found = _words(event, before)
    return NoteWritten(event.at, *found) if found else None


def _words(event: ev.Event, before: RunState) -> tuple[str, str] | None:
    match event:
        case NoteWritten(text=text, level=level):
            return text, level
        case ev.StageEntered(stage=stage) if stage and stage != before.stage:
            return stage, "stage"
        case ev.ModelLoaded(seconds=seconds):
            return f"model loaded in {seconds:.1f} s", "stage"
        case ev.WorkerStarted(pid=pid, attempt=attempt):
            return f"worker {pid} started" + (f", attempt {attempt}" if attempt > 1 else ""), "info"
        case ev.WorkerDied(reason=reason, unit=unit, method=method):
            where = f" in {unit}" if unit else ""
            return f"worker died: {reason}{where}" + (f" ({method})" if method else ""), "error"
        case ev.MethodFailed(method=method, error=error):
            return f"{method} failed: {error}", "error"
        case ev.AuditRecorded(method=method, label=label) if label != "real" and method != "baseline":
            return f"{method} is {label}, so it is not ranked", "warning"
        case ev.UnitFinished(unit=unit, seconds=seconds):
            return f"{unit} done in {seconds:.1f} s", "info"
        case ev.UnitLost(unit=unit, reason=reason):
            return f"{unit} was left out: {reason}", "error"
        case _:
            return _milestone(event)


def _milestone(event: ev.Event) -> tuple[str, str] | None:
    match event:
        case ev.RunStarted(methods=methods, units=units):
            return f"run started: {len(methods)} methods, {len(units)} units", "stage"
        case ev.RunResumed(done_units=done):
            return f"run resumed after {done} finished units", "stage"
        case ev.RunInterrupted(reason=reason):
            return f"interrupted: {reason}", "warning"
        case ev.RunFailed(error=error):
            return f"failed: {error}", "error"
        case ev.RunFinished(seconds=seconds, result=result):
            return f"finished in {duration(seconds)}, result in {result}", "stage"
        case _:
            return None
