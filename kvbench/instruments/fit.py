"""Whether a question fits a model, as its config says: asked of a plan, and again once the model is found. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kvbench.errors import UsageError
from kvbench.instruments.context import Asked
from kvbench.methods.method import Method
from kvbench.methods.registered import objections
from kvbench.models.shape import Shape, check_supported
from kvbench.spec import RunSpec
from kvbench.spec.registry import asking


def check_fit(spec: RunSpec, methods: Mapping[str, Method], evaluators: Iterable[Asked], config: Any, shape: Shape) -> None:
    """Refuse what the model's config already rules out, before its weights are read."""
    length = spec.context + spec.continuation
    check_supported(config, length)
    limit = shape.max_positions
    for evaluator in evaluators:
        with asking(f"evaluator '{evaluator.name}'", "kvbench list evaluators"):
            evaluator.check_length(spec, limit)
    if limit and length > limit:
        raise UsageError(
            f"context {spec.context} + continuation {spec.continuation} is beyond this model's {limit} positions",
            hint=f"use --context {max(1, limit - spec.continuation)}",
        )
    for label, method in methods.items():
        with objections(label):
            method.check(shape)
