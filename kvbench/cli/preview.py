"""``kvbench run --dry-run``: the plan as text, without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvbench.budgeting.expected import ShapeScale, Unknown, expected_bytes
from kvbench.budgeting.solver import Solution, solve
from kvbench.engine.plan import Plan, complete, plan
from kvbench.figures import Table
from kvbench.figures.terminal import columns
from kvbench.formats import NONE, TIMES, fixed, size
from kvbench.metrics import factors
from kvbench.models.ahead import config_ahead
from kvbench.models.shape import Config, Shape, shape_of
from kvbench.spec import RunSpec, auto_cache_dtype
from kvbench.spec.budgets import written

if TYPE_CHECKING:
    from kvbench.methods.method import Method


def preview(spec: RunSpec) -> str:
    """Methods with the bytes they are expected to store, units, and tokens to read; nothing is computed, and torch is not imported.

    Raises:
        UsageError: the plan cannot be made.
        ModelError, UnsupportedModel: as loading the model would be refused, as far as its files say.
    """
    config = config_ahead(spec.model)
    made = plan(complete(spec), config)
    known = None if config is None else Known(shape_of(config), cache_dtype_of(spec, config))
    return "\n\n".join(("\n".join(_question(made.spec, config)), _methods(made, known), "\n".join(_units(made)))) + "\n"


@dataclass(frozen=True)
class Known:
    """What a model's config says: its shape, and the format of its uncompressed cache."""

    shape: Shape
    cache_dtype: str


def _question(spec: RunSpec, config: Config | None) -> list[str]:
    model = spec.model
    weights = " (random weights)" if model.random_weights else ""
    return [
        f"model       {model.id}{weights} · {model.dtype}, cache {cache_dtype_of(spec, config or {})} · {model.device}",
        f"text        {spec.corpus.name} · {spec.samples} samples of {spec.context} + {spec.continuation} tokens",
        f"protocol    {spec.protocol} · batches of {spec.batch_size} · seed {spec.seed}",
    ]


def _methods(made: Plan, known: Known | None) -> str:
    solved = _solved(made.spec, known)
    sizes = {label: _bytes(method, made.spec, known) for label, method in made.methods.items() if label not in solved}
    sizes |= {label: found.stored for label, found in solved.items()}
    base = sizes.get("baseline")
    rows = [
        [label, method.title, size(sizes[label]), _factor(base, sizes[label]), *([_settings(solved.get(label))] if solved else [])]
        for label, method in made.methods.items()
    ]
    of = known.cache_dtype if known else None
    heads = ["method", "", "stored, expected", factors.titled("factor", of), *(["to meet its budget"] if solved else [])]
    return "\n".join([columns(Table("methods", "", heads, rows, sides="llrrl"[: len(heads)])), *_notes(made, known, sizes)])


def _notes(made: Plan, known: Known | None, sizes: Mapping[str, int | None]) -> list[str]:
    """What a reader of the sizes must know."""
    if known is None:
        return [f"{NONE}: the model is not on this machine, so its sizes are not known"]
    lines = factors.notes(known.cache_dtype)
    unknown = [label for label in made.methods if sizes[label] is None]
    return [*lines, f"{NONE}: the text, a calibration or other layers decide what {', '.join(unknown)} stores"] if unknown else lines


def _solved(spec: RunSpec, known: Known | None) -> dict[str, Solution]:
    """What budgets come to as far as a model's shape decides it; a method whose size a calibration decides is left out."""
    if known is None:
        return {}
    scale = ShapeScale(known.shape, spec.context, known.cache_dtype)
    found: dict[str, Solution] = {}
    for method in spec.methods:
        if method.budget is not None:
            with suppress(Unknown):
                found[method.label] = solve(method, spec, known.shape, scale)
    return found


def _settings(found: Solution | None) -> str:
    if found is None:
        return NONE
    return found.error or written(found.turned) or "nothing turned"


def _factor(base: int | None, stored: int | None) -> str:
    return f"{fixed(base / stored, 2)}{TIMES}" if base and stored else NONE


def _bytes(method: Method, spec: RunSpec, known: Known | None) -> int | None:
    """Stored bytes of one sequence after its context; unknown without a config, and where something else than sizes decides."""
    if known is None or (spec.protocol == "streaming" and (method.selects or method.needs.any)):
        return None  # what a stream leaves was chosen on the way
    wide = 8 if spec.model.dtype == "float64" else 4
    return expected_bytes(method, known.shape, spec.context, known.cache_dtype, wide=wide)


def cache_dtype_of(spec: RunSpec, config: Config) -> str:
    """The uncompressed cache's number format as it will be."""
    asked = spec.model.cache_dtype
    return auto_cache_dtype(spec.model.dtype, config) if asked == "auto" else asked


def _units(made: Plan) -> list[str]:
    counts = Counter(unit.evaluator for unit in made.units)
    steps = {name: sum(u.steps for u in made.units if u.evaluator == name) for name in counts}
    tokens = made.spec.samples * (made.spec.context + made.spec.continuation)
    width = max(12, *(len(name) + 2 for name in counts))
    lines = [f"{name:<{width}}{count} units, {steps[name]} steps" for name, count in counts.items()]
    return [*lines, f"{'tokens':<{width}}{tokens:,} of text; {tokens * len(made.methods):,} over {len(made.methods)} methods"]
