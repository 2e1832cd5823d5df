"""The process that holds the model: ``python -m kvbench.engine.worker RUN_FOLDER EVENT_FD SUPERVISOR_PID MARK``.

It reads from the journal what is left to do, does it unit by unit, and tells each fact as one JSON line on a
descriptor of its own, so that whatever libraries print cannot mix with it. It keeps nothing that a kill could lose,
and does not outlive its supervisor.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvbench.engine.failures import cannot_open, classify
from kvbench.engine.journal import RunFolder
from kvbench.engine.meeting import meet_budgets
from kvbench.engine.pipe import Sender
from kvbench.engine.plan import all_evaluators, resolve_methods, units_left
from kvbench.engine.telling import Context, Emitter
from kvbench.errors import ExitCode, KvbenchError, RunFailed
from kvbench.evaluators.base import Evaluator
from kvbench.evaluators.registered import evaluators_of
from kvbench.record import events as ev
from kvbench.record.collecting import keep_for_good
from kvbench.record.state import RunState, replay
from kvbench.spec import BASELINE, Unit
from kvbench.texts.windows import oddities

if TYPE_CHECKING:
    from kvbench.instruments.session import Session


def work(state: RunState, emit: Emitter, apart: Set[str] = frozenset()) -> None:
    """Open the session and do what is left.

    Args:
        apart: Units whose methods must not go together.

    Raises:
        KvbenchError: the run cannot go on (no model, no text, the baseline failed).
    """
    from kvbench.instruments.session import Session

    spec = state.spec
    if spec is None:
        raise RunFailed("the journal has no plan")
    methods = resolve_methods(spec, {label: row.budget for label, row in state.methods.items() if row.budget is not None})
    evaluators = {evaluator.name: evaluator for evaluator in all_evaluators(spec)}
    failed = {label for label, row in state.methods.items() if row.status == "failed"}
    started = time.time()
    try:
        session = Session.open(spec, methods, emit.stage, evaluators_of(spec))
    except (Exception, SystemExit) as error:
        raise cannot_open(error) from error
    try:
        _tell_facts(session, emit, started)
        left = units_left(state)
        _prepare([e for name, e in evaluators.items() if any(unit.evaluator == name for unit in left)], session, emit)
        session = meet_budgets(spec, session, state, emit, failed)
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
            if facts:
                emit(ev.EvaluatorPrepared(time.time(), evaluator.name, dict(facts)))
        except (Exception, SystemExit) as error:
            raise cannot_open(error, f"evaluator '{evaluator.name}'") from error


def _tell_facts(session: Session, emit: Emitter, started: float) -> None:
    now = time.time()
    emit(ev.EnvironmentRecorded(now, dict(session.environment)))
    emit(ev.ModelLoaded(now, dict(session.info_model), now - started))
    if session.info_corpus:
        emit(ev.CorpusLoaded(now, dict(session.info_corpus)))
        for text in oddities(session.info_corpus):
            emit(ev.NoteWritten(now, text, "warning"))


def do(
    unit: Unit, evaluator: Evaluator, session: Session, emit: Callable[[ev.Event], None], failed: set[str], *, apart: bool = False
) -> None:
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
