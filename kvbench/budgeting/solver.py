"""Equal bytes: turns a method's dial until what it really stores meets its budget, or says how near it can come.

Every trial builds the method and lets it store tokens; nothing is reckoned from bits and ratios.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kvbench.budgeting.search import FINE, Search, Turned
from kvbench.errors import UsageError
from kvbench.methods.method import Method
from kvbench.models.shape import Shape
from kvbench.spec import MethodSpec, RunSpec
from kvbench.spec.budgets import Budget, is_met, written


class Scale(Protocol):
    """Says what a method stores of one sequence of ``tokens`` tokens, of which the baseline stores ``baseline`` bytes."""

    @property
    def tokens(self) -> int: ...

    @property
    def baseline(self) -> int: ...

    def estimate(self, method: Method) -> int:
        """Stored bytes over all layers, quickly."""

    def weigh(self, method: Method) -> int:
        """Stored bytes over all layers, every one of them stored."""


@dataclass(frozen=True)
class Solution:
    """What a budget came to.

    Attributes:
        method: With its parameters turned. turned: Those. target: Bytes asked for. stored: Bytes met, of ``baseline``.
        error: Why the budget cannot be met; the rest is then the nearest to it. ``None``: it is met.
    """

    method: Method
    turned: Turned
    target: float
    stored: int
    baseline: int
    error: str | None


def solve(spec: MethodSpec, run: RunSpec, shape: Shape, scale: Scale) -> Solution:
    """The parameters with which ``spec`` stores what its budget allows.

    What the user gave stays as it is. Of a composition the eviction is turned, or else what stores its tokens.

    Raises:
        UsageError: the specification has no budget, or the method does not fit the model whatever is turned.
    """
    if spec.budget is None:
        raise UsageError(f"method '{spec.label}' has no budget", hint=f"write {spec.label}@4x")
    budget = Budget.parse(spec.budget)
    target = budget.target(scale.baseline, scale.tokens)
    best = Search(spec, run, shape, target, scale.estimate).best()
    stored = scale.weigh(best.method)
    if abs(stored - best.stored) > FINE * stored:  # the estimates mislead: search by storing everything
        best = Search(spec, run, shape, target, scale.weigh).best()
        stored = best.stored
    error = None if is_met(stored, target) else _refusal(budget, best.turned, budget.measure(stored, scale.baseline, scale.tokens))
    return Solution(best.method, best.turned, target, stored, scale.baseline, error)


def _refusal(budget: Budget, turned: Turned, nearest: str) -> str:
    asked = f"{budget.text} less" if budget.unit == "x" else budget.text
    if not turned:
        return f"cannot store {asked}: it stores {nearest} and has nothing left to turn"
    return f"cannot store {asked}: the nearest is {nearest} with {written(turned)}"
