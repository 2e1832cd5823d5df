"""A unit context that keeps what an evaluator tells, for tests without a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from kvbench.evaluators.base import UnitContext
from kvbench.record.schema import check_record


def as_read(evaluator: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """A record as a journal gives it back; one that readers of it would refuse is an error."""
    plain: dict[str, Any] = orjson.loads(orjson.dumps(dict(data), option=orjson.OPT_SERIALIZE_NUMPY))
    check_record(evaluator, plain)
    return plain


class Told(UnitContext):
    """Records, as a journal would give them back. An ``ArithmeticError`` becomes the method's failure; all others are the test's.

    Args:
        evaluator: Whose records they are.
    """

    def __init__(self, evaluator: str) -> None:
        self.evaluator = evaluator
        self.records: dict[str, dict[str, dict[str, Any]]] = {}
        self.labels: dict[str, str] = {}
        self.failed: set[str] = set()

    def method_started(self, method: str) -> None: ...

    def record(self, method: str, key: str, data: Mapping[str, Any]) -> None:
        self.records.setdefault(method, {})[key] = as_read(self.evaluator, data)

    def audited(self, method: str, label: str, checks: Mapping[str, Any]) -> None:
        self.labels[method] = label

    def guard(self, method: str, action: Callable[[], None]) -> bool:
        try:
            action()
        except ArithmeticError:
            self.failed.add(method)
            return False
        return True

    def is_alive(self, method: str) -> bool:
        return method not in self.failed
