"""What a result file and a journal must hold, field by field, so that a damaged one is refused where it is damaged."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from kvbench.errors import ResultError
from kvbench.metrics.recorded import Amount, Count, Number, Positive

Name = str | None


class ModelFacts(TypedDict, total=False):
    """What is read of a model's facts; there may be more."""

    id: Name
    revision: Name
    layers: Count | None
    heads: Count | None
    kv_heads: Count | None
    head_dim: Count | None
    hidden_size: Count | None
    parameters: Count | None
    dtype: Name
    cache_dtype: Name
    device: Name
    device_name: Name
    weights_hash: Name
    tokenizer_hash: Name
    calibration: dict[str, Any] | None


class CorpusFacts(TypedDict, total=False):
    """What is read of a text's facts."""

    name: Name
    source: Name
    content_hash: Name
    tokens_hash: Name
    join: Name
    bos: bool | None
    head: list[str] | None
    window: Count | None
    stride: Count | None


class EnvironmentFacts(TypedDict, total=False):
    """What is read of an environment."""

    kvbench: Name
    platform: Name
    cpu: Name
    cpu_cores: Count | None
    threads: Count | None
    memory_bytes: Count | None
    gpu: Name
    git: dict[str, Any] | None


class AuditCheck(TypedDict):
    """One check of the audit."""

    passed: bool
    figure: NotRequired[Any]
    detail: NotRequired[Name]


class MeasuredFigure(TypedDict):
    """One figure that ``compare`` reads."""

    metric: str
    value: NotRequired[Number | None]
    unit: str
    evidence: str
    better: str
    point: NotRequired[str]
    low: NotRequired[Number | None]
    high: NotRequired[Number | None]
    samples: NotRequired[dict[str, Number | None] | None]
    scale: NotRequired[str]
    read_path: NotRequired[str]


class Budget(TypedDict):
    """How a row's budget was met."""

    at: Amount
    method: str
    budget: str
    parameters: dict[str, bool | int | float | str]
    target_bytes: Positive
    stored_bytes: Positive
    baseline_bytes: Positive
    error: NotRequired[Name]


class ResultRow(TypedDict):
    """One method of a result."""

    method: str
    status: str
    measured: list[MeasuredFigure] | None
    method_name: NotRequired[Name]
    error: NotRequired[Name]
    error_kind: NotRequired[Name]
    audit: NotRequired[Name]
    audit_checks: NotRequired[dict[str, AuditCheck] | None]
    budget_solved: NotRequired[Budget | None]
    avg_nll: NotRequired[Number | None]
    perplexity: NotRequired[Number | None]
    perplexity_low: NotRequired[Number | None]
    perplexity_high: NotRequired[Number | None]
    kl: NotRequired[Number | None]
    kl_p50: NotRequired[Number | None]
    kl_p90: NotRequired[Number | None]
    kl_p99: NotRequired[Number | None]
    kl_max: NotRequired[Number | None]
    ece: NotRequired[Number | None]
    total_tokens: NotRequired[Number | None]
    tokens_read_compressed: NotRequired[Number | None]
    compression_factor_end: NotRequired[Number | None]


class Result(TypedDict):
    """The whole file; records are looked at by their evaluators."""

    schema: int
    run: str
    complete: bool
    kvbench_version: str
    protocol: str
    spec: dict[str, Any]
    environment: EnvironmentFacts
    model: ModelFacts
    corpus: CorpusFacts
    baseline_perplexity: Number | None
    results: list[ResultRow]
    records: dict[str, dict[str, dict[str, dict[str, Any]]]]
    lost: dict[str, str]
    seconds: Annotated[float, msgspec.Meta(ge=0.0, le=1e11)]
    prepared: NotRequired[dict[str, dict[str, Any]]]


def check_result(data: Mapping[str, Any]) -> None:
    """Everything that types can say of a result, and of every record.

    Raises:
        ResultError: names the place and what is wrong there.
    """
    _check(data, Result, "")
    labels = {row["method"] for row in data["results"]}
    for evaluator, methods in data["records"].items():
        for method, by_key in methods.items():
            if method not in labels:
                raise ResultError(f"records, {evaluator}: there is no row '{method}'")
            for key, record in by_key.items():
                check_record(evaluator, record, f"records, {evaluator}, {method}, {key}")


KINDS: Mapping[str, Any] = {"model": ModelFacts, "corpus": CorpusFacts, "environment": EnvironmentFacts, "audit": dict[str, AuditCheck]}
"""What events tell that a result holds too: a model's facts, a text's, an environment, and the checks of one method's audit."""


def check_told(kind: str, data: Any) -> None:
    """One of ``KINDS``.

    Raises:
        ResultError: names the field and what is wrong there.
    """
    _check(data, KINDS[kind], kind)


def check_record(evaluator: str, record: Any, where: str = "") -> None:
    """A record against what its evaluator says that one holds; of an evaluator that is not installed nothing is known.

    Raises:
        ResultError: names the field.
    """
    kind = _record_of(evaluator)
    if kind is not None:
        _check(record, kind, where or f"record of {evaluator}")


@lru_cache(maxsize=64)  # a journal has many records of few evaluators
def _record_of(evaluator: str) -> Any:
    from kvbench.evaluators.registered import record_of

    return record_of(evaluator)


def _check(data: Any, kind: Any, where: str) -> None:
    try:
        msgspec.convert(data, kind, str_keys=True)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        path = ", ".join(filter(None, (where, place.rstrip("`").lstrip("."))))
        raise ResultError(f"{path}: {reason}" if path else reason) from error
