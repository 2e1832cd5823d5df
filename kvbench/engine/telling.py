"""How a worker speaks: events to its supervisor, and what happens in one unit.

A method's failure becomes its row here; nothing of it reaches another method.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from kvbench.engine.failures import classify, free_memory, not_finite
from kvbench.engine.pipe import Sender
from kvbench.errors import RunFailed
from kvbench.instruments.context import UnitContext
from kvbench.record import events as ev
from kvbench.record.schema import check_record
from kvbench.spec import BASELINE, Unit

STAGE_EVERY = 0.5
"""Seconds between two reports of one stage's progress."""


class Emitter:
    """Tells the supervisor events, and stages not too often."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._stage, self._stage_at = "", 0.0

    def __call__(self, event: ev.Event) -> None:
        self._sender.send(event)

    def stage(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Tell progress: each new stage and each end, and in between not too often."""
        now = time.time()
        if stage != self._stage or done == total or now - self._stage_at >= STAGE_EVERY:
            self._stage, self._stage_at = stage, now
            self(ev.StageEntered(now, stage, done, total))


class Context(UnitContext):
    """Tells what happens in one unit, and turns a method's failure into its row."""

    def __init__(self, unit: Unit, emit: Callable[[ev.Event], None], failed: set[str], *, apart: bool = False, dtype: str = "") -> None:
        self._unit, self._emit, self._failed, self._dtype, self.apart = unit, emit, failed, dtype, apart
        self.facts = 0
        """Records, audits and failures told so far."""

    def method_started(self, method: str) -> None:
        self._emit(ev.MethodStarted(time.time(), self._unit.id, method))

    def record(self, method: str, key: str, data: Mapping[str, Any]) -> None:
        if not isinstance(key, str):
            raise TypeError(f"a record's key is a text, not {type(key).__name__}")
        broken = not_finite(data)
        if broken:
            raise FloatingPointError(f"{broken} is not a finite number ({self._unit.evaluator}, {key})")
        plain = orjson.loads(orjson.dumps(dict(data), option=orjson.OPT_SERIALIZE_NUMPY))
        check_record(self._unit.evaluator, plain)  # what no reader would take must not be written
        self._tell(ev.RecordMade(time.time(), self._unit.id, self._unit.evaluator, method, key, plain))

    def audited(self, method: str, label: str, checks: Mapping[str, Any]) -> None:
        self._tell(ev.AuditRecorded(time.time(), method, label, dict(checks)))

    def _tell(self, event: ev.RecordMade | ev.AuditRecorded | ev.MethodFailed) -> None:
        self._emit(event)
        self.facts += 1

    def is_alive(self, method: str) -> bool:
        return method not in self._failed

    def guard(self, method: str, action: Callable[[], None]) -> bool:
        """Run ``action``; see :meth:`UnitContext.guard`.

        Raises:
            RunFailed: the baseline failed, so nothing could be compared.
        """
        if not self.is_alive(method):
            return False
        try:
            action()
        except BaseException as error:  # sys.exit too; Ctrl-C never comes here (SIGINT is ignored)
            traceback.print_exc()
            kind, text = classify(error)
        else:
            return True
        if kind == "out of memory":  # only now, when the traceback no longer holds the tensors
            free_memory()
        self._failed.add(method)
        self._tell(ev.MethodFailed(time.time(), self._unit.id, method, text, kind))
        if method == BASELINE:
            raise RunFailed(f"the baseline failed in {self._unit.id}: {text}", hint=_baseline_hint(kind, self._dtype))
        return False


def _baseline_hint(kind: str, dtype: str) -> str:
    if kind == "not finite" and dtype == "float16":
        return "--dtype bfloat16  # float16 ends at 65,504, and this model's numbers go beyond it"
    return "use smaller --context or --batch-size, or another --device" if kind == "out of memory" else "kvbench verify baseline"
