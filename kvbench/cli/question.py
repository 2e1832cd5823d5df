"""From preset and flags to the question of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvbench import sweeps
from kvbench.engine.plan import complete, refuse_taken
from kvbench.errors import UsageError
from kvbench.methods.registered import expand, left_out, named
from kvbench.models.shape import shape_of
from kvbench.spec import CONTROLS, EvaluatorSpec, RunSpec, presets, split_list

IN_MODEL = ("dtype", "cache_dtype", "device", "random_weights", "revision")
IN_CORPUS = ("data_dir", "stride", "bos")


def spec_of(flags: Mapping[str, Any], *, are_the_users: bool = True) -> RunSpec:
    """The preset with the flags over it, completed and checked; a flag that is ``None`` was not given.

    ``--model`` without ``--preset`` takes no preset: sizes are ``RunSpec``'s defaults. Names of methods and evaluators in
    flags that ``are_the_users`` must be one package's alone.

    Raises:
        UsageError: a name, value or combination that no run can have.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    if are_the_users:
        refuse_taken(named(_texts(given.get("methods"))), map(EvaluatorSpec.parse, _texts(given.get("evals"))))
    chosen = given.pop("preset", None) or (None if "model" in given else presets.DEFAULT)
    preset = presets.read_preset(chosen) if chosen else {}
    kwargs = presets.to_spec(preset, _nested(given))
    asked, protocol = kwargs.pop("methods", ["all"]), kwargs.get("protocol", "prefill")
    methods, notes = expand(asked, kwargs.get("budget"), protocol), left_out(asked, kwargs.get("budget"), protocol)
    evaluators = tuple(EvaluatorSpec(e.name, e.params) for e in map(EvaluatorSpec.parse, kwargs.pop("evaluators", [])))
    return complete(RunSpec(**kwargs, methods=methods, evaluators=evaluators, notes=notes))


def sweep_of(flags: Mapping[str, Any]) -> RunSpec:
    """The question of a sweep: as :func:`spec_of`, with its methods from ``method``, ``over`` and ``ablation``.

    Raises:
        UsageError: no sweep, one that is none, or a flag that stands against it.
    """
    given = dict(flags)
    methods, over, ablation = given.pop("method"), sweeps.parse_axes(given.pop("over")), given.pop("ablation")
    if ablation is not None and methods:
        raise UsageError("an ablation names its own methods", hint="--method with --over, or --ablation alone")
    if "context" in over and given.get("context") is not None:
        raise UsageError("--context is what --over context sweeps", hint="leave --context out: the longest is the run's")
    swept = named(methods)
    refuse_taken(swept, ())
    made = sweeps.of_methods(swept, over) if ablation is None else None
    if given.get("methods") is None:
        given["methods"] = CONTROLS[0]
    spec = spec_of(given)
    config = spec.model.config
    return sweeps.apply(spec, made or sweeps.of_ablation(ablation, over, shape_of(config).head_dim if config else None))


def _texts(flag: str | None) -> list[str]:
    return split_list(flag) if flag else []


def _nested(given: dict[str, Any]) -> dict[str, Any]:
    """Flags in a preset's nesting. Local paths become whole, so that a run can be resumed from any folder."""
    model = {key: given.pop(key) for key in IN_MODEL if key in given}
    if "model" in given:
        model["id"] = _whole_path(given.pop("model"))
    corpus = {key: given.pop(key) for key in IN_CORPUS if key in given}
    if "corpus" in given:
        corpus["name"] = _whole_path(given.pop("corpus"))
    if "data_dir" in corpus:
        corpus["data_dir"] = str(Path(corpus["data_dir"]).expanduser().resolve())
    return {**given, "model": model, "corpus": corpus}


def _whole_path(text: str) -> str:
    """The absolute path of what exists here under a path-like name; any other name as it is."""
    path = Path(text).expanduser()
    looks_local = path.is_absolute() or text.startswith((".", "~")) or path.suffix in (".gguf", ".txt", ".jsonl")
    return str(path.resolve()) if looks_local and path.exists() else text
