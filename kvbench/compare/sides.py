"""One result file as ``compare`` sees it: what was asked, where it ran, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from kvbench.errors import ResultError
from kvbench.metrics import factors
from kvbench.metrics.measured import Measured

Key = tuple[str, str]
"""(metric, point)."""
_MEASURED_FIELDS = frozenset(f.name for f in fields(Measured))
_INCIDENTAL = frozenset({"git", "git.commit", "git.dirty", "gpu_clocks", "gpu_clocks.sm", "gpu_clocks.memory", "memory_bytes"})
"""Not worth a warning: the code under test, clocks of the moment, how much memory there is."""


@dataclass(frozen=True)
class MethodResult:
    """One row of a result file."""

    label: str
    status: str = "done"
    audit: str | None = None
    error: str | None = None
    measured: Mapping[Key, Measured] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """One of the two results.

    Attributes:
        name: The run's name.
        about: Model, numbers, text and lengths in one line, for headings.
        complete: Whether the run ended with every unit measured.
        facts: What decides whether figures may be set side by side (:func:`facts_of`); absent facts are ``None``.
        settings: Other choices that change what a method did (compression ratio, seed …).
        environment: What a reader should know differs (device, versions, threads, number format).
        methods: label → row, in the file's order.
    """

    name: str
    about: str
    complete: bool
    facts: Mapping[str, Any]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    methods: Mapping[str, MethodResult]


def side_of(result: Mapping[str, Any]) -> Side:
    """Read a loaded result (``kvbench.record.results.load``).

    Raises:
        ResultError: a row or a measured figure is of the wrong shape.
    """
    name = str(result["run"])
    try:
        rows = [_method(row) for row in result["results"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultError(f"result '{name}' has a row that cannot be read: {error!r}", hint="kvbench run writes a new one") from error
    facts, settings, environment = facts_of(result), _settings(result), _environment(result)
    return Side(name, _about(result), bool(result["complete"]), facts, settings, environment, {row.label: row for row in rows})


def facts_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that comparability rests on, flat; see ``kvbench.compare.align`` for which metric needs which."""
    spec, model, corpus = result["spec"], result["model"], result["corpus"]
    return {
        "protocol": result["protocol"],
        "chunk_size": spec.get("chunk_size") if result["protocol"] == "streaming" else None,
        "context": spec.get("context"),
        "continuation": spec.get("continuation"),
        "text": corpus.get("tokens_hash"),
        "source": (corpus.get("content_hash"), model.get("tokenizer_hash")),
        "windows": (*(corpus.get(key) for key in ("join", "bos", "window", "stride")), *(corpus.get("head") or ())),
        "weights": model.get("weights_hash"),
        "shape": tuple(model.get(key) for key in ("layers", "heads", "kv_heads", "head_dim", "hidden_size")),
        "cache dtype": model.get("cache_dtype"),
    }


def _about(result: Mapping[str, Any]) -> str:
    spec, model, corpus = result["spec"], result["model"], result["corpus"]
    lengths = f"{spec.get('samples')} samples of ({spec.get('context')} + {spec.get('continuation')}) tokens"
    device = model.get("device_name") or model.get("device")
    of = factors.wide(model.get("cache_dtype"))
    parts = (model.get("id"), model.get("dtype"), f"factors of {of}" if of else "", device, corpus.get("name"), result["protocol"], lengths)
    return " · ".join(str(part) for part in parts if part)


def _settings(result: Mapping[str, Any]) -> dict[str, Any]:
    names = ("compression_ratio", "seed", "samples", "batch_size")
    calibrated = result["model"].get("calibration") or {}
    return {name: result["spec"].get(name) for name in names} | {f"calibration of {name}": calibrated[name] for name in calibrated}


def _environment(result: Mapping[str, Any]) -> dict[str, Any]:
    """Flat, without what differs from run to run and means nothing for a figure."""
    model = {key: result["model"].get(key) for key in ("device_name", "dtype", "cache_dtype", "config_hash")}
    found = {key: value for key, value in _flat(result["environment"]) if key not in _INCIDENTAL}
    return {"kvbench": result["kvbench_version"], **model, **found}


def _flat(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _method(row: Mapping[str, Any]) -> MethodResult:
    measured = [_measured(one) for one in row.get("measured") or ()]
    return MethodResult(
        label=str(row["method"]), status=str(row.get("status") or "done"), audit=row.get("audit"), error=row.get("error"),
        measured={(one.metric, one.point): one for one in measured},
    )  # fmt: skip


def _measured(data: Mapping[str, Any]) -> Measured:
    """One figure; NaN and infinities count as not measured."""
    known = {key: value for key, value in data.items() if key in _MEASURED_FIELDS}
    samples = {key: float(value) for key, value in (known.pop("samples", None) or {}).items() if _finite(value)}
    value = known.pop("value", None)
    return Measured(**known, value=float(value) if _finite(value) else None, samples=samples)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
