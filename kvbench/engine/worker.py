"""The process that holds the model: ``python -m kvbench.engine.worker RUN_FOLDER EVENT_FD SUPERVISOR_PID MARK``.

It reads from the journal what is left to do, does it unit by unit, and tells each fact as one JSON line on a
descriptor of its own, so that whatever libraries print cannot mix with it. It keeps nothing that a kill could lose,
and does not outlive its supervisor.
"""

from __future__ import annotations

import faulthandler
import gc
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench import events as ev
from kvbench.engine.journal import RunFolder
from kvbench.engine.pipe import Sender
from kvbench.engine.plan import all_evaluators, resolve_methods, units_left
from kvbench.engine.room import is_out_of_memory
from kvbench.errors import ExitCode, KvbenchError, ResourceError, RunFailed
from kvbench.evaluators.base import BASELINE, Evaluator, UnitContext
from kvbench.state import RunState, Unit, replay
from kvbench.windows import oddities

if TYPE_CHECKING:
    from kvbench.engine.scale import PromptScale
    from kvbench.engine.session import Session
    from kvbench.methods.base import Method
    from kvbench.spec import MethodSpec, RunSpec

STAGE_EVERY = 0.5
"""Seconds between two reports of one stage's progress."""


class Emitter:
    """Tells the supervisor events, and stages not too often."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._stage, self._stage_at = "", 0.0

    def __call__(self, event: ev.Event) -> None:
        self._sender.send(event)

    def stage(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Tell progress: each new stage and each end, and in between not too often."""
        now = time.time()
        if stage != self._stage or done == total or now - self._stage_at >= STAGE_EVERY:
            self._stage, self._stage_at = stage, now
            self(ev.StageEntered(now, stage, done, total))


class Context(UnitContext):
    """Tells what happens in one unit, and turns a method's failure into its row."""

    def __init__(self, unit: Unit, emit: Callable[[ev.Event], None], failed: set[str], *, apart: bool = False, dtype: str = "") -> None:
        self._unit, self._emit, self._failed, self._dtype, self.apart = unit, emit, failed, dtype, apart
        self.facts = 0
        """Records, audits and failures told so far."""

    def method_started(self, method: str) -> None:
        self._emit(ev.MethodStarted(time.time(), self._unit.id, method))

    def record(self, method: str, key: str, data: Mapping[str, Any]) -> None:
        broken = not_finite(data)
        if broken:
            raise FloatingPointError(f"{broken} is not a finite number ({self._unit.evaluator}, {key})")
        self._tell(ev.RecordMade(time.time(), self._unit.id, self._unit.evaluator, method, key, dict(data)))

    def audited(self, method: str, label: str, checks: Mapping[str, Any]) -> None:
        self._tell(ev.AuditRecorded(time.time(), method, label, dict(checks)))

    def _tell(self, event: ev.RecordMade | ev.AuditRecorded | ev.MethodFailed) -> None:
        self._emit(event)
        self.facts += 1

    def is_alive(self, method: str) -> bool:
        return method not in self._failed

    def guard(self, method: str, action: Callable[[], None]) -> bool:
        """Run ``action``; see :meth:`UnitContext.guard`.

        Raises:
            RunFailed: the baseline failed, so nothing could be compared.
        """
        if not self.is_alive(method):
            return False
        try:
            action()
        except Exception as error:
            traceback.print_exc()
            kind, text = classify(error)
        else:
            return True
        if kind == "out of memory":  # only now, when the traceback no longer holds the tensors
            free_memory()
        self._failed.add(method)
        self._tell(ev.MethodFailed(time.time(), self._unit.id, method, text, kind))
        if method == BASELINE:
            raise RunFailed(f"the baseline failed in {self._unit.id}: {text}", hint=_baseline_hint(kind, self._dtype))
        return False


def _baseline_hint(kind: str, dtype: str) -> str:
    if kind == "not finite" and dtype == "float16":
        return "--dtype bfloat16  # float16 ends at 65,504, and this model's numbers go beyond it"
    return "use smaller --context or --batch-size, or another --device" if kind == "out of memory" else "kvbench verify baseline"


def not_finite(data: Any, name: str = "value") -> str | None:
    """The name of the first NaN or infinity in nested plain data, or ``None``."""
    if isinstance(data, Mapping):
        return next((found for key, value in data.items() if (found := not_finite(value, str(key)))), None)
    if hasattr(data, "tolist"):
        data = data.tolist()
    if isinstance(data, list | tuple):
        return next((found for value in data if (found := not_finite(value, name))), None)
    return name if isinstance(data, float) and not math.isfinite(data) else None


def classify(error: Exception) -> tuple[str, str]:
    """(kind, one line): ``out of memory``, ``not finite`` or the exception's own name."""
    first = (str(error).strip() or "no message").splitlines()[0]
    if is_out_of_memory(error):
        return "out of memory", first
    if isinstance(error, FloatingPointError):
        return "not finite", first
    if isinstance(error, KvbenchError):
        return type(error).__name__, error.message
    return type(error).__name__, f"{type(error).__name__}: {first}"


def keep_for_good() -> None:
    """What is held now is held to the end: circles are then looked for among newer objects alone, in milliseconds a unit."""
    gc.collect()
    gc.freeze()


def free_memory() -> None:
    """Give back what a failed method held."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def work(state: RunState, emit: Emitter, apart: Set[str] = frozenset()) -> None:
    """Open the session and do what is left.

    Args:
        apart: Units whose methods must not go together.

    Raises:
        KvbenchError: the run cannot go on (no model, no text, the baseline failed).
    """
    from kvbench.engine.session import Session

    spec = state.spec
    if spec is None:
        raise RunFailed("the journal has no plan")
    methods = resolve_methods(spec, {label: row.budget for label, row in state.methods.items() if row.budget is not None})
    evaluators = {evaluator.name: evaluator for evaluator in all_evaluators(spec)}
    failed = {label for label, row in state.methods.items() if row.status == "failed"}
    started = time.time()
    try:
        session = Session.open(spec, methods, emit.stage)
    except Exception as error:
        raise _cannot_open(error) from error
    try:
        _tell_facts(session, emit, started)
        left = units_left(state)
        _prepare([e for name, e in evaluators.items() if any(unit.evaluator == name for unit in left)], session, emit)
        session = _meet_budgets(spec, session, state, emit, failed)
        keep_for_good()
        for unit in left:
            do(unit, evaluators[unit.evaluator], session, emit, failed, apart=unit.id in apart)
    finally:
        session.close()


def _prepare(evaluators: Sequence[Evaluator], session: Session, emit: Emitter) -> None:
    """Let every evaluator read its data before anything is scored.

    Raises:
        KvbenchError: one of them cannot.
    """
    for evaluator in evaluators:
        try:
            facts = evaluator.prepare(session, emit.stage)
        except Exception as error:
            raise _cannot_open(error) from error
        if facts:
            emit(ev.EvaluatorPrepared(time.time(), evaluator.name, dict(facts)))


def _cannot_open(error: Exception) -> KvbenchError:
    """Trying again would end the same way, so this ends the run."""
    if isinstance(error, KvbenchError):
        return error
    traceback.print_exc()
    kind, text = classify(error)
    if kind == "out of memory":
        return ResourceError(f"out of memory while the model was loaded: {text}", hint="use a smaller --model, or another --device")
    return RunFailed(f"the model could not be prepared: {text}", hint="the run's run.log has the traceback")


def _meet_budgets(spec: RunSpec, session: Session, state: RunState, emit: Emitter, failed: set[str]) -> Session:
    """The session with methods that store what their budgets allow; those that cannot, fail.

    Raises:
        KvbenchError: the prompt that they are weighed on cannot be had.
    """
    asked = [m for m in spec.methods if m.budget is not None and state.methods[m.label].budget is None and m.label not in failed]
    if not asked:
        return session
    from kvbench.engine.scale import PromptScale

    try:
        scale = PromptScale.of(session, [m.label for m in asked])
    except Exception as error:
        raise _cannot_open(error) from error
    methods = dict(session.methods)
    for done, method in enumerate(asked):
        emit.stage("meeting budgets", done, len(asked))
        unit = units_left(state)[0]
        emit(ev.MethodStarted(time.time(), unit.id, method.label))
        methods[method.label] = _meet_budget(method, session, scale, unit, emit, failed)
    emit.stage("meeting budgets", len(asked), len(asked))
    return replace(session, methods=methods)


def _meet_budget(spec: MethodSpec, session: Session, scale: PromptScale, unit: Unit, emit: Emitter, failed: set[str]) -> Method:
    """The method as its budget turned it; one that breaks while it is weighed fails in the ``unit`` to come."""
    from kvbench.engine.budget import solve

    try:
        found = solve(spec, session.spec, session.loaded.shape, scale)
    except Exception as error:
        traceback.print_exc()
        kind, text = classify(error)
        failed.add(spec.label)
        emit(ev.MethodFailed(time.time(), unit.id, spec.label, text, kind))
        return session.methods[spec.label]
    if found.error is not None:
        failed.add(spec.label)
    facts = (found.turned, found.target, found.stored, found.baseline, found.error)
    emit(ev.BudgetSolved(time.time(), spec.label, str(spec.budget), *facts))
    return found.method


def _tell_facts(session: Session, emit: Emitter, started: float) -> None:
    now = time.time()
    emit(ev.EnvironmentRecorded(now, dict(session.environment)))
    emit(ev.ModelLoaded(now, dict(session.info_model), now - started))
    if session.info_corpus:
        emit(ev.CorpusLoaded(now, dict(session.info_corpus)))
        for text in oddities(session.info_corpus):
            emit(ev.NoteWritten(now, text, "warning"))


def do(unit: Unit, evaluator: Evaluator, session: Session, emit: Emitter, failed: set[str], *, apart: bool = False) -> None:
    started = time.time()
    emit(ev.UnitStarted(started, unit.id))
    alive = tuple(label for label in unit.methods if label not in failed)
    context = Context(unit, emit, failed, apart=apart, dtype=_format_of(session))
    if alive:
        evaluator.run(replace(unit, methods=alive), session, context)
    gc.collect()  # by itself Python looks for circles after hundreds of units, and a method's may hold its tensors
    now = time.time()
    emit(ev.UnitFinished(now, unit.id, now - started, context.facts))


def _format_of(session: Session) -> str:
    """In which the model computes: ``float16``."""
    return str(session.loaded.dtype).removeprefix("torch.")


def die_with(supervisor: int) -> None:
    """Ask Linux to kill this process when its supervisor dies; elsewhere the broken pipe ends it."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != supervisor:  # it died before we asked
        os._exit(ExitCode.INTERNAL)


def broken_together(events: Iterable[ev.Event]) -> frozenset[str]:
    """Units in which a worker died while no method was in flight alone: there each must go by itself, so that one can be blamed."""
    return frozenset(e.unit for e in events if isinstance(e, ev.WorkerDied) and e.unit is not None and e.method == BASELINE)


def main(argv: list[str]) -> int:
    folder, fd = RunFolder(Path(argv[0])), int(argv[1])
    die_with(int(argv[2]))
    os.set_inheritable(fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    emit = Emitter(Sender(fd, argv[3]))
    try:
        events = folder.read()
        work(replay(events), emit, broken_together(events))
    except KvbenchError as error:
        emit(ev.RunFailed(time.time(), error.message, error.hint, int(error.exit_code)))
        return int(error.exit_code)
    except Exception as error:
        traceback.print_exc()
        emit(ev.NoteWritten(time.time(), f"worker: {classify(error)[1]}", "error"))
        return int(ExitCode.INTERNAL)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
