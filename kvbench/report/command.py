"""The command that asks a run's question again, from its specification."""

from __future__ import annotations

import shlex
from typing import Any

from kvbench.spec import BASELINE, CONTROLS, RunSpec, presets

_FLAGS = ("samples", "context", "continuation", "compression_ratio", "budget", "protocol", "chunk_size", "batch_size", "seed")
_MODEL_FLAGS = ("device", "dtype", "cache_dtype", "revision")
_CORPUS_FLAGS = ("stride", "bos", "data_dir")


def command_of(spec: RunSpec) -> str:
    """One line for a shell. Flags that the preset, or nothing said at all, gives anyway are left out.

    A sweep comes out as the methods that it has: the same rows, without their axes.
    """
    known = spec.preset if spec.preset in presets.names() else None
    base = RunSpec(**_plain(presets.to_spec(presets.read_preset(known), {}))) if known else RunSpec()
    words = ["kvbench", "run", *(["--preset", known] if known else ["--model", spec.model.id])]
    if known and spec.model.id != base.model.id:
        words += ["--model", spec.model.id]
    words += _changed(spec.model, base.model, _MODEL_FLAGS) + (["--random-weights"] if spec.model.random_weights else [])
    words += ["--methods", ",".join(m.label for m in spec.methods if m.label not in CONTROLS) or BASELINE]
    words += ["--evals", ",".join(e.label for e in spec.evaluators)]
    words += ["--corpus", spec.corpus.name] if spec.corpus.name != base.corpus.name else []
    words += _changed(spec.corpus, base.corpus, _CORPUS_FLAGS) + _changed(spec, base, _FLAGS)
    return shlex.join(words)


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in ("methods", "evaluators")}


def _changed(found: Any, base: Any, names: tuple[str, ...]) -> list[str]:
    values = {name: getattr(found, name) for name in names if getattr(found, name) != getattr(base, name)}
    return [word for name, value in values.items() if value is not None for word in (f"--{name.replace('_', '-')}", str(value))]
