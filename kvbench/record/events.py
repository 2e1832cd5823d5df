"""What happens in a run, as frozen facts, and their JSON-lines form.

Events are the journal's only content. The worker tells them, the supervisor writes them, and
everything else (dashboard, plain display, ``watch``, resume, the result) reads them through
``kvbench.record.state.apply``. Times are seconds since the epoch, durations seconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec
import orjson

from kvbench.errors import ResultError


@dataclass(frozen=True)
class Event:
    """Base of all events; ``at`` is set where the event happens."""

    at: float


@dataclass(frozen=True)
class RunStarted(Event):
    """The journal's first line: the question and the plan."""

    spec: dict[str, Any]
    units: list[dict[str, Any]]
    """Planned units in order: ``{"id", "evaluator", "index", "methods", "steps"}``."""
    methods: list[str]
    """Row labels in table order."""
    kvbench_version: str
    schema: int


@dataclass(frozen=True)
class RunResumed(Event):
    """A later process went on with this run."""

    done_units: int


@dataclass(frozen=True)
class WorkerStarted(Event):
    pid: int
    attempt: int
    worker: str = ""
    """Its name among several; a single one needs none."""


@dataclass(frozen=True)
class StageEntered(Event):
    """What the worker is busy with before or between units (``loading model``, ``calibrating v_lowrank``)."""

    stage: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class EnvironmentRecorded(Event):
    environment: dict[str, Any]


@dataclass(frozen=True)
class ModelLoaded(Event):
    """``model`` holds id, weights hash, shape (layers, heads, kv_heads, head_dim), dtypes, parameter count."""

    model: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class CorpusLoaded(Event):
    """``corpus`` holds name, content hash, join, bos, window, stride and token count."""

    corpus: dict[str, Any]


@dataclass(frozen=True)
class EvaluatorPrepared(Event):
    """``facts`` say what an evaluator will read: sources, digests, what was left out."""

    evaluator: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class BudgetSolved(Event):
    """With which parameters a method meets its byte budget, or comes nearest to it.

    Bytes are of one sequence after the context, over all layers, as the run's first prompt is stored.
    """

    method: str
    budget: str
    """As asked for: ``4x``, ``14KiB/token``."""
    parameters: dict[str, Any]
    """What was turned, and to what."""
    target_bytes: float
    stored_bytes: int
    baseline_bytes: int
    error: str | None = None
    """Why it cannot be met: the row's end. ``None``: it is met."""


@dataclass(frozen=True)
class UnitStarted(Event):
    unit: str
    worker: str = ""


@dataclass(frozen=True)
class MethodStarted(Event):
    unit: str
    method: str


@dataclass(frozen=True)
class RecordMade(Event):
    """One measurement of one method: the only event that carries results.

    ``key`` names the sample, point or repeat within the evaluator; a record made again under the
    same (evaluator, method, key) replaces the first, so a redone unit is never counted twice.
    """

    unit: str
    evaluator: str
    method: str
    key: str
    data: dict[str, Any]


@dataclass(frozen=True)
class AuditRecorded(Event):
    """``audit`` holds the label and every check with its figure."""

    method: str
    label: str
    audit: dict[str, Any]


@dataclass(frozen=True)
class MethodFailed(Event):
    """One method's failure (an exception, out of memory, NaN): its row's end, not the run's."""

    unit: str
    method: str
    error: str
    kind: str


@dataclass(frozen=True)
class UnitFinished(Event):
    unit: str
    seconds: float
    facts: int | None = None
    """Records, audits and failures that were told in it: a damaged journal that holds as many has lost none of them."""


@dataclass(frozen=True)
class UnitLost(Event):
    """The unit killed the worker more than once and was left out."""

    unit: str
    reason: str


@dataclass(frozen=True)
class WorkerDied(Event):
    reason: str
    unit: str | None = None
    method: str | None = None
    worker: str = ""


@dataclass(frozen=True)
class TelemetrySampled(Event):
    """Memory now. ``gpu_used`` is NVML's for the device (bytes), ``resident`` the worker's, ``None`` where absent."""

    resident: int | None
    gpu_used: int | None
    gpu_total: int | None = None
    gpu_utilisation: float | None = None
    power_watts: float | None = None


@dataclass(frozen=True)
class NoteWritten(Event):
    """A line worth showing in the log pane."""

    text: str
    level: str = "info"


@dataclass(frozen=True)
class RunInterrupted(Event):
    reason: str


@dataclass(frozen=True)
class RunFailed(Event):
    error: str
    hint: str | None
    exit_code: int


@dataclass(frozen=True)
class RunFinished(Event):
    result: str
    """Name of the result file inside the run folder."""
    seconds: float = field(default=0.0)


EVENTS: Mapping[str, type[Event]] = {
    cls.__name__: cls for cls in list(globals().values()) if isinstance(cls, type) and issubclass(cls, Event) and cls is not Event
}


def encode(event: Event) -> bytes:
    """One JSON line, newline included: ``{"event": "UnitStarted", "at": ..., ...}``."""
    plain = {f.name: getattr(event, f.name) for f in fields(event)}
    return orjson.dumps({"event": type(event).__name__, **plain}, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"


def decode(line: bytes) -> Event:
    """Read one line back.

    Raises:
        ResultError: broken JSON, an unknown event or a field of the wrong kind.
    """
    try:
        plain = orjson.loads(line)
        return msgspec.convert(plain, EVENTS[plain.pop("event")])
    except (orjson.JSONDecodeError, msgspec.ValidationError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ResultError(f"broken journal line: {line[:80]!r} ({error})") from error
