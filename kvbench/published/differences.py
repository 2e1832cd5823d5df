"""In what a row of a result is not what a published figure is of: setting, model, data, protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvbench.errors import UsageError
from kvbench.published import Entry
from kvbench.published.counterparts import AVERAGE, length_of, words
from kvbench.published.ours import RATIOS, SCORES, Ours
from kvbench.spec import FIRST, MethodSpec, ParamValue

BYTES = ("compression_factor", "compression_ratio")
HARNESS = "lm-eval"
"""Whose prompts and scoring kvbench's tasks take."""
BOTH = "both"
"""The value of ``question`` that asks every question twice."""
OWN_SHOTS = -1
"""The value of ``fewshot`` that leaves a task its own number."""
TASKS = "tasks"
"""The evaluator of tasks that have none of their own."""


def differences(entry: Entry, result: Mapping[str, Any], row: Mapping[str, Any], ours: Ours) -> list[str]:
    """What is not the same, as ``model: Llama-2-7B (ours embedded:smollm2)``; empty if all is."""
    unlike = setting(entry, result, row)[0] if entry.exact else ["ours only comes near"]
    found = [*([f"setting: {', '.join(unlike)}"] if unlike else []), *_reading(entry, result, ours)]
    if entry.metric in RATIOS and entry.hardware != (own := str(result["model"].get("device_name") or "not said")):
        found.append(f"hardware: {entry.hardware or 'not said'} (ours {own})")
    return found


def setting(entry: Entry, result: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[list[str], float]:
    """How the row's parameters differ from the entry's, and a distance that orders near and far ones."""
    own, theirs = MethodSpec.parse(str(row["method"])), entry.spec
    if theirs is None or own.name != theirs.name:
        return [f"method: {entry.method or 'none of ours'}"], float("inf")
    turned = (row.get("budget_solved") or {}).get("parameters") or {}
    ratio = result["spec"].get("compression_ratio")
    left, right = _parameters(own.turned(turned), ratio), _parameters(theirs, None)
    unlike = [key for key in dict.fromkeys([*right, *left]) if key in right or key in own.options]
    unlike = [key for key in unlike if left.get(key) != right.get(key)]
    said = [f"{key} {right.get(key, 'as default')} (ours {left.get(key, 'as default')})" for key in unlike]
    said += [f"stored as it is (ours by {own.store.label})"] if own.store is not None else []
    return said, sum(_apart(left.get(key), right.get(key)) for key in unlike) + (own.store is not None)


def _parameters(spec: MethodSpec, ratio: float | None) -> dict[str, ParamValue]:
    """Every parameter: given, or the run's compression ratio, or the default; a missing plug-in has the given ones alone."""
    from kvbench.methods.registered import METHODS

    try:
        known = {name: default for name, default, _ in METHODS.load(spec.name).parameters()}
    except UsageError:
        known = {}
    given = {key if key != FIRST else next(iter(known), key): value for key, value in spec.options.items()}
    if "compression_ratio" in known:  # without a ratio of its own an entry's is in its setting's words
        known.pop("compression_ratio")
        known |= {} if ratio is None else {"compression_ratio": ratio}
    return {**known, **given}


def _apart(one: ParamValue | None, other: ParamValue | None) -> float:
    """0 to 1: by how much of the larger two numbers differ; 1 for anything else."""
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) / max(abs(one), abs(other), 1e-12)
    return 1.0


def _reading(entry: Entry, result: Mapping[str, Any], ours: Ours) -> Iterator[str]:
    """Model, data, length and protocol."""
    model = str(result["model"].get("id") or result["spec"].get("model", {}).get("id"))
    if _model(model) != _model(entry.model):
        yield f"model: {entry.model} (ours {model})"
    if entry.metric not in SCORES and entry.task and entry.task != (corpus := str(result["corpus"].get("name"))):
        yield f"data: {entry.task} (ours {corpus})"
    if ours.mean_of > 1 or (entry.task.endswith(AVERAGE) and AVERAGE not in words(f"{ours.metric} {ours.point}")):
        yield f"tasks: the suite's average (ours over {ours.mean_of})"
    if entry.context is not None and entry.context != (length := _length(entry, result, ours)):
        yield f"length: {entry.context:,} tokens (ours {f'{length:,}' if length else 'not said'})"
    own = "generation" if entry.metric in RATIOS else str(result["protocol"])
    if entry.protocol != own and entry.metric not in BYTES:
        yield f"protocol: {entry.protocol} (ours {own})"
    if entry.metric in SCORES:
        yield from _prompts(entry, result)
    if entry.question and entry.question != (question := _question(entry, result, ours)):
        yield f"question: {entry.question} while compressing (ours {question})"


def _prompts(entry: Entry, result: Mapping[str, Any]) -> Iterator[str]:
    shots = _asked(result).get(TASKS, {}).get("fewshot", OWN_SHOTS)
    if not entry.harness.startswith(HARNESS):
        yield f"prompts and scoring: {entry.harness or 'not said'} (ours {HARNESS}'s)"
    elif shots != OWN_SHOTS:
        yield f"examples: as many as the task's own (ours {shots})"


def _asked(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Evaluator → the parameters that it was given."""
    return {str(one["name"]): dict(one.get("params") or ()) for one in result["spec"].get("evaluators") or ()}


def _length(entry: Entry, result: Mapping[str, Any], ours: Ours) -> int | None:
    """Tokens that our figure is of: its point's, or the run's context where a score is not asked for."""
    named, run = length_of(ours.point), result["spec"].get("context")
    if named is not None or entry.metric in SCORES:
        return named
    return run if isinstance(run, int) else None


def _question(entry: Entry, result: Mapping[str, Any], ours: Ours) -> str:
    """Whether compression saw our question: by the figure's point, or by the parameter of the evaluator that it is of."""
    said = words(ours.point) & {"hidden", "visible"}
    if said:
        return said.pop()
    asked, suite = _asked(result), entry.task.partition("/")[0]
    name = suite if suite in asked else TASKS
    given = str(asked.get(name, {}).get("question") or _default(name, "question") or "not said")
    return "hidden" if given == BOTH else given  # a figure of questions seen says so in its point


def _default(evaluator: str, parameter: str) -> Any:
    from kvbench.evaluators.registered import EVALUATORS

    try:
        return next((default for name, default, _ in EVALUATORS.load(evaluator).parameters() if name == parameter), None)
    except UsageError:
        return None


def _model(name: str) -> str:
    """``meta-llama/Meta-Llama-3-8B-Instruct`` → ``llama-3-8b-instruct``: owner, spelling and format are no difference."""
    last = name.rstrip("/").rpartition("/")[2].lower().replace("_", "-")
    return last.removeprefix("meta-").removesuffix("-hf")
