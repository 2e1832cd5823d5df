"""A model with its methods as a run's worker opens them, for the scripts that measure parts of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from kvbench.engine.plan import complete, resolve_methods
from kvbench.evaluators.registered import evaluators_of
from kvbench.instruments.session import Session
from kvbench.methods.base import expand
from kvbench.models.weights import silent
from kvbench.record import events as ev
from kvbench.spec import EvaluatorSpec, ModelSpec, RunSpec
from kvbench.texts.corpora import Windows

NO_TEXT = "speed"
"""An evaluator that reads none, so that none is loaded."""


def opened(model: ModelSpec, methods: str | Sequence[str], *, evaluator: str = NO_TEXT, **rest: Any) -> Session:
    """A session of ``methods`` and both controls; ``rest`` is the run's: sizes and text."""
    labels = expand([methods] if isinstance(methods, str) else methods)
    spec = complete(RunSpec(model=model, methods=labels, evaluators=(EvaluatorSpec(evaluator),), **rest))
    return Session.open(spec, resolve_methods(spec), silent, evaluators_of(spec))


def with_random_text(session: Session) -> Session:
    """It, to be scored on seeded random tokens ``[samples, C + S]``, as a model with random weights can be."""
    spec, vocabulary = session.spec, session.loaded.shape.vocab_size
    shape = (spec.samples, spec.context + spec.continuation)
    tokens = torch.randint(3, vocabulary, shape, generator=torch.Generator().manual_seed(0))
    return replace(session, windows=Windows(tokens, {}))  # type: ignore[arg-type]


def heard(event: ev.Event) -> None:
    """Listens to a unit: a method's failure is the script's.

    Raises:
        RuntimeError: a method failed.
    """
    if isinstance(event, ev.MethodFailed):
        raise RuntimeError(f"{event.method} failed in {event.unit}: {event.error}")
