"""``kvbench run --dry-run``: the plan as text, without a model."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from kvbench.budgets import written
from kvbench.engine.budget import Solution, solve
from kvbench.engine.expected import expected_bytes
from kvbench.engine.plan import Plan, complete, plan
from kvbench.engine.scale import ShapeScale, Unknown, is_coupled
from kvbench.formats import NONE, TIMES, fixed, size
from kvbench.shape import Shape, shape_of
from kvbench.spec import RunSpec

if TYPE_CHECKING:
    from kvbench.methods.base import Method


def preview(spec: RunSpec) -> str:
    """Methods with the bytes they are expected to store, units, and tokens to read.

    Raises:
        UsageError: the plan cannot be made.
    """
    made = plan(complete(spec))
    return "\n\n".join(("\n".join(_question(made.spec)), _methods(made), "\n".join(_units(made)))) + "\n"


def _question(spec: RunSpec) -> list[str]:
    model = spec.model
    weights = " (random weights)" if model.random_weights else ""
    return [
        f"model       {model.id}{weights} · {model.dtype}, cache {model.cache_dtype} · {model.device}",
        f"text        {spec.corpus.name} · {spec.samples} samples of {spec.context} + {spec.continuation} tokens",
        f"protocol    {spec.protocol} · batches of {spec.batch_size} · seed {spec.seed}",
    ]


def _methods(made: Plan) -> str:
    from tabulate import tabulate

    shape = shape_of(made.spec.model.config) if made.spec.model.config else None
    solved = _solved(made.spec, shape)
    sizes = {label: _bytes(method, made.spec, shape) for label, method in made.methods.items() if label not in solved}
    sizes |= {label: found.stored for label, found in solved.items()}
    base = sizes.get("baseline")
    rows = [
        [label, method.title, size(sizes[label]), _factor(base, sizes[label]), *([_settings(solved.get(label))] if solved else [])]
        for label, method in made.methods.items()
    ]
    heads = ["method", "", "stored, expected", "factor", *(["to meet its budget"] if solved else [])]
    align = ("left", "left", "right", "right", *(["left"] if solved else []))
    return tabulate(rows, headers=heads, tablefmt="simple", colalign=align, disable_numparse=True)


def _solved(spec: RunSpec, shape: Shape | None) -> dict[str, Solution]:
    """What budgets come to as far as a model's shape decides it; a method whose size a calibration decides is left out."""
    if shape is None:
        return {}
    scale = ShapeScale(shape, spec.context, cache_dtype_of(spec))
    found: dict[str, Solution] = {}
    for method in spec.methods:
        if method.budget is not None:
            with suppress(Unknown):
                found[method.label] = solve(method, spec, shape, scale)
    return found


def _settings(found: Solution | None) -> str:
    if found is None:
        return NONE
    return found.error or written(found.turned) or "nothing turned"


def _factor(base: int | None, stored: int | None) -> str:
    return f"{fixed(base / stored, 2)}{TIMES}" if base and stored else NONE


def _bytes(method: Method, spec: RunSpec, shape: Shape | None) -> int | None:
    """Stored bytes of one sequence after its context; unknown without a config, where a calibration decides, or other layers."""
    return None if shape is None or is_coupled(method) else expected_bytes(method, shape, spec.context, cache_dtype_of(spec))


def cache_dtype_of(spec: RunSpec) -> str:
    """The cache's number format as far as it is known before the model is loaded."""
    if spec.model.cache_dtype != "auto":
        return spec.model.cache_dtype
    if spec.model.dtype != "auto":
        return spec.model.dtype
    config = spec.model.config or {}
    return "float32" if spec.model.device == "cpu" else str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def _units(made: Plan) -> list[str]:
    counts = Counter(unit.evaluator for unit in made.units)
    steps = {name: sum(u.steps for u in made.units if u.evaluator == name) for name in counts}
    tokens = made.spec.samples * (made.spec.context + made.spec.continuation)
    width = max(12, *(len(name) + 2 for name in counts))
    lines = [f"{name:<{width}}{count} units, {steps[name]} steps" for name, count in counts.items()]
    return [*lines, f"{'tokens':<{width}}{tokens:,} of text; {tokens * len(made.methods):,} over {len(made.methods)} methods"]
