"""What a run was measured on: model, text, protocol, machine and versions, as names and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvbench.formats import duration, size
from kvbench.record.state import RunState
from kvbench.report.overview import heads

_HASH = 12
"""Characters of a hash that are shown."""


def facts_of(state: RunState) -> list[tuple[str, str]]:
    """Name and value, in reading order; what is not known is left out."""
    return [(name, value) for name, value in _facts(state) if value]


def _facts(state: RunState) -> Iterator[tuple[str, str]]:
    spec, model, corpus, environment = state.spec, state.model, state.corpus, state.environment
    if spec is not None:
        weights = _random(spec.model.random_weights)
        dtype, cache = (model.get(name) or getattr(spec.model, name) for name in ("dtype", "cache_dtype"))
        yield "Model", _joined(model.get("id") or spec.model.id, model.get("revision"), _parameters(model), weights)
        yield "Layers", heads(state)
        yield "Numbers", _joined(f"weights {dtype}", f"cache {cache}")
    yield "Weights", _hash(model.get("weights_hash"))
    yield "Text", _joined(corpus.get("name"), corpus.get("source"), _hash(corpus.get("content_hash")))
    if spec is not None:
        lengths = f"{spec.samples} samples of {spec.context} + {spec.continuation} tokens"
        streaming = f"chunks of {spec.chunk_size}" if spec.protocol == "streaming" else ""
        yield "Protocol", _joined(spec.protocol, streaming, lengths, f"seed {spec.seed}")
        yield "Evaluators", ", ".join(e.label for e in spec.evaluators)
    yield "Device", _joined(model.get("device_name") or model.get("device"), environment.get("gpu"))
    yield "Machine", _joined(environment.get("platform"), _cpu(environment), _memory(environment))
    yield "Versions", _joined(*(_version(environment, name) for name in ("torch", "transformers", "cuda", "driver", "python")))
    yield "kvbench", _joined(state.kvbench_version, _commit(environment.get("git")))
    yield "Time", duration(state.elapsed)


def _joined(*parts: object) -> str:
    return " · ".join(str(part) for part in parts if part)


def _parameters(model: Mapping[str, Any]) -> str:
    count = model.get("parameters")
    return f"{count / 1e6:,.0f} M parameters" if isinstance(count, int) else ""


def _random(is_random: bool) -> str:
    return "random weights: quality means nothing" if is_random else ""


def _hash(value: object) -> str:
    return f"sha256 {str(value)[:_HASH]}…" if value else ""


def _cpu(environment: Mapping[str, Any]) -> str:
    cores, threads = environment.get("cpu_cores"), environment.get("threads")
    return _joined(environment.get("cpu"), f"{cores} cores" if cores else "", f"{threads} threads" if threads else "")


def _memory(environment: Mapping[str, Any]) -> str:
    return size(environment["memory_bytes"]) if environment.get("memory_bytes") else ""


def _version(environment: Mapping[str, Any], name: str) -> str:
    return f"{name} {environment[name]}" if environment.get(name) else ""


def _commit(git: object) -> str:
    if not isinstance(git, Mapping) or not git.get("commit"):
        return ""
    return f"commit {str(git['commit'])[:_HASH]}" + (" with changes" if git.get("dirty") else "")
