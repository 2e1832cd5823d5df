"""Methods of a session turned until what they store meets their budgets, one fact an event."""

from __future__ import annotations

import time
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING

from kvbench.engine.failures import cannot_open, classify
from kvbench.engine.plan import units_left
from kvbench.engine.telling import Emitter
from kvbench.record import events as ev
from kvbench.record.state import RunState
from kvbench.spec import Unit

if TYPE_CHECKING:
    from kvbench.budgeting.weighing import PromptScale
    from kvbench.instruments.session import Session
    from kvbench.methods.method import Method
    from kvbench.spec import MethodSpec, RunSpec


def meet_budgets(spec: RunSpec, session: Session, state: RunState, emit: Emitter, failed: set[str]) -> Session:
    """The session with methods that store what their budgets allow; those that cannot, fail.

    Raises:
        KvbenchError: the prompt that they are weighed on cannot be had.
    """
    asked = [m for m in spec.methods if m.budget is not None and state.methods[m.label].budget is None and m.label not in failed]
    if not asked:
        return session
    from kvbench.budgeting.weighing import PromptScale

    try:
        scale = PromptScale.of(session, [m.label for m in asked])
    except Exception as error:
        raise cannot_open(error) from error
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
    from kvbench.budgeting.solver import solve

    try:
        found = solve(spec, session.spec, session.loaded.shape, scale)
    except (Exception, SystemExit) as error:
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
