"""What a method stores, weighed by letting it store a prompt of the run.

To be quick, an estimate stores the first layer and the last only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from kvbench.budgeting.expected import is_coupled
from kvbench.methods.method import Method

if TYPE_CHECKING:
    from kvbench.instruments.protocol import Prompt, Runner
    from kvbench.instruments.session import Session


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
