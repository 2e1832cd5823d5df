"""The pieces that a run's work is cut into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unit:
    """A piece of work that is finished or not: one index of one evaluator for a group of methods."""

    id: str
    evaluator: str
    index: int
    methods: tuple[str, ...]
    steps: int = 1
    """How many method-sized steps it holds; only for progress."""

    def to_plain(self) -> dict[str, Any]:
        return {"id": self.id, "evaluator": self.evaluator, "index": self.index, "methods": list(self.methods), "steps": self.steps}
