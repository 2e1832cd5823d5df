"""How what measures speaks while it runs a unit. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kvbench.spec import BASELINE, RunSpec

Stage = Callable[[str, int, int], None]
"""Tells progress: what, done, total."""


class Asked(Protocol):
    """What an evaluator tells of itself to what it will run on."""

    @property
    def name(self) -> str: ...

    @property
    def needs_text(self) -> bool:
        """It scores the corpus."""

    def check_length(self, spec: RunSpec, limit: int) -> None:
        """Refuse sequences that are longer than a model's positions; a ``limit`` of 0 is none."""


class UnitContext:
    """How an evaluator speaks while it runs a unit; implemented by the worker."""

    apart: bool = False
    """Methods that would go together must go one by one in this unit."""

    def method_started(self, method: str) -> None:
        """Mark ``method`` as the one in flight (the row lights up; a crash is blamed on it)."""
        raise NotImplementedError

    def record(self, method: str, key: str, data: Mapping[str, Any]) -> None:
        """Journal one measurement."""
        raise NotImplementedError

    def audited(self, method: str, label: str, checks: Mapping[str, Any]) -> None:
        """Journal what the audit found: the label and every check with its figure."""
        raise NotImplementedError

    def guard(self, method: str, action: Callable[[], None]) -> bool:
        """Run ``action``; a failure in it becomes ``method``'s row. ``True`` if it succeeded."""
        raise NotImplementedError

    def alone(self, method: str, action: Callable[[], None]) -> bool:
        """Mark ``method`` as the one in flight, and run ``action`` as :meth:`guard` does."""
        self.method_started(method)
        return self.guard(method, action)

    def together(self) -> Together:
        """A guard for what all methods do together; a crash then is nobody's, until each is tried alone and lights up."""
        self.method_started(BASELINE)
        return Together(self, self.apart)

    def is_alive(self, method: str) -> bool:
        """Whether ``method`` has not failed in this run."""
        raise NotImplementedError


@dataclass(frozen=True)
class Together:
    """The guard of :meth:`UnitContext.together`. ``apart``: together they ended a worker, so each must go alone from the start."""

    context: UnitContext
    apart: bool = False

    def __call__(self, method: str, action: Callable[[], None]) -> bool:
        return self.context.alone(method, action)
