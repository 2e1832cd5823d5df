"""A run's session on a model at hand, as a worker opens it, for tests without a worker."""

from __future__ import annotations

from telling import Told

from kvbench.evaluators.base import Evaluator
from kvbench.evaluators.trial import loaded_of, opened
from kvbench.instruments.session import Session

__all__ = ["loaded_of", "opened", "told_by"]


def told_by(evaluator: Evaluator, session: Session) -> Told:
    """What an evaluator records of every unit."""
    told = Told(evaluator.name)
    for unit in evaluator.units(session.spec, list(session.methods)):
        evaluator.run(unit, session, told)
    return told
