"""A unit context that keeps what an evaluator tells, for tests without a worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from kvbench.evaluators.base import UnitContext


class Told(UnitContext):
    """Records, as a journal would give them back. An ``ArithmeticError`` becomes the method's failure; all others are the test's."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, dict[str, Any]]] = {}
        self.failed: set[str] = set()

    def method_started(self, method: str) -> None: ...

    def record(self, method: str, key: str, data: Mapping[str, Any]) -> None:
        self.records.setdefault(method, {})[key] = json.loads(json.dumps(data))

    def guard(self, method: str, action: Callable[[], None]) -> bool:
        try:
            action()
        except ArithmeticError:
            self.failed.add(method)
            return False
        return True

    def is_alive(self, method: str) -> bool:
        return method not in self.failed
