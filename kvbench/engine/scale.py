"""What a method stores, weighed by letting it store: on a prompt of the run, or before there is a model.

To be quick, an estimate stores the first layer and the last only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from kvbench.methods.base import Method
from kvbench.shape import Shape, cache_bytes_per_token

if TYPE_CHECKING:
    from kvbench.engine.protocol import Prompt, Runner
    from kvbench.engine.session import Session


class PromptScale:
    """Weighs methods on a prompt of the run, in the run's own caches.

    Args:
        prompt: Of one sequence, with all that the methods need. baseline: Its bytes, uncompressed.
    """

    def __init__(self, runner: Runner, prompt: Prompt, baseline: int) -> None:
        self.runner, self.prompt, self.baseline = runner, prompt, baseline
        self.tokens = prompt.views[0].seen
        self._known: dict[Method, int] = {}

    @classmethod
    def of(cls, session: Session, labels: Sequence[str]) -> PromptScale:
        """On the first prompt of the run."""
        tokens = session.prompt(1, session.spec.context)
        prompt = session.runner.prefill(tokens, session.needs(labels))
        return cls(session.runner, prompt, session.baseline_bytes(session.spec.context))

    def weigh(self, method: Method) -> int:
        return self.runner.compress(method, self.prompt).ledger().stored

    def estimate(self, method: Method) -> int:
        if method not in self._known:
            self._known[method] = self._sampled(method)
        return self._known[method]

    @torch.inference_mode()
    def _sampled(self, method: Method) -> int:
        """The first layer and the last stand for all where they store alike and no layer knows another."""
        if is_coupled(method):
            return self.weigh(method)
        layers, views = self.runner.cache(method).layers, self.prompt.views

        def stored(index: int) -> int:
            with self.runner.lent(self.prompt):
                layers[index].adopt(views[index])
            return layers[index].ledger().stored

        ends = [stored(index) for index in sorted({0, len(layers) - 1})]
        if len(set(ends)) == 1:
            return ends[0] * len(layers)
        return sum(ends) + sum(stored(index) for index in range(1, len(layers) - 1))


def is_coupled(method: Method) -> bool:
    """Whether the method, or of a composition the one that keeps tokens, ties layers together."""
    keeper: Method = getattr(method, "keeper", method)
    return type(keeper).join is not Method.join


class Unknown(Exception):
    """What a method stores is not decided by the model's shape."""


@dataclass
class ShapeScale:
    """Weighs methods by a model's shape, before it is loaded.

    Attributes:
        shape: The model's. tokens: Of the context. dtype: Of the cache.
    """

    shape: Shape
    tokens: int
    dtype: str
    _known: dict[Method, int] = field(default_factory=dict)

    @cached_property
    def baseline(self) -> int:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return cache_bytes_per_token(self.shape, dtype.itemsize) * self.tokens

    def estimate(self, method: Method) -> int:
        return self.weigh(method)

    def weigh(self, method: Method) -> int:
        """Stored bytes.

        Raises:
            Unknown: a calibration decides them, or what other layers store.
        """
        from kvbench.engine.expected import expected_bytes

        if method not in self._known:
            found = None if is_coupled(method) else expected_bytes(method, self.shape, self.tokens, self.dtype)
            if found is None:
                raise Unknown
            self._known[method] = found
        return self._known[method]
