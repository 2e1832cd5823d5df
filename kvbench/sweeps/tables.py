"""What a sweep shows: rows under their axes, and a heat map of each figure where there are two axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from kvbench.figures import Figure, Grid, Table
from kvbench.formats import NONE, TIMES, fixed, signed, with_interval
from kvbench.metrics.measured import Better, Measured, Summary
from kvbench.metrics.paired import paired, shared
from kvbench.spec import BASELINE, ParamValue, RunSpec, SweepSpec, format_value

Summaries = Mapping[str, Mapping[str, Summary]]
At = tuple[ParamValue | None, ...]
"""A value for each axis of a table."""
DELTA = "ppl_delta_pct"


@dataclass(frozen=True)
class Metric:
    """A figure as tables and heat maps show it: ``scale`` times what was measured."""

    key: str
    heading: str
    decimals: int
    better: Better
    scale: float = 1.0
    suffix: str = ""
    in_grids: bool = True


FACTOR = "compression_factor"
METRICS = (
    Metric("perplexity", "PPL", 2, "lower", in_grids=False),
    Metric(DELTA, "ΔPPL % [95 %]", 2, "lower"),
    Metric("kl_mean", "KL", 4, "lower"),
    Metric("top1_agreement", "top-1 %", 1, "higher", 100.0),
    Metric(FACTOR, "factor", 2, "higher", suffix=TIMES),
    Metric("bytes_per_token", "KiB/token", 2, "lower", 1 / 1024, in_grids=False),
    Metric("ttft_s", "TTFT ms", 1, "lower", 1000.0, in_grids=False),
    Metric("tpot_s", "TPOT ms", 1, "lower", 1000.0, in_grids=False),
    Metric("tokens_per_s", "tokens/s", 1, "higher"),
)
_LEFT_OUT = frozenset({
    "ece", "stored_bytes", "memory_stored_bytes", "prefill_s", "compress_s", "resident_bytes", "gpu_used_bytes", "allocator_peak_bytes",
    "roofline_tokens_per_s", "prepare_s", "capture_s", "flush_s",
})  # fmt: skip
_CELL = 6
"""Characters of a change beyond which it gives up decimals."""
_OTHERS = 6
"""Figures of other evaluators that a table takes in."""


@dataclass(frozen=True)
class Cell:
    """One figure of one row at one point, with its paired interval if it is a difference."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Family:
    """Metrics that were measured along the same of the run's own axes (``context``, ``batch``).

    Attributes:
        along: Those axes. metrics: What was measured. cells: (row label, point along them, metric) → figure.
    """

    along: tuple[str, ...]
    metrics: Sequence[Metric]
    cells: Mapping[tuple[str, At, str], Cell]


def figures(spec: RunSpec, summaries: Summaries) -> list[Figure]:
    """A table for each family of metrics, then heat maps; nothing of a run that sweeps nothing.

    Args:
        summaries: evaluator → method → summary (:func:`kvbench.record.summary.summarise`).
    """
    sweep = spec.sweep
    if sweep is None:
        return []
    families = _families(spec, sweep, summaries)
    tables = [_table(sweep, family, with_place=len(families) > 1) for family in families]
    return [*tables, *(grid for family in families for grid in _grids(sweep, family))]


def points_of(sweep: SweepSpec) -> dict[str, tuple[int, ...]]:
    """The run's own axes that are swept, with their values, rising."""
    found = {"context": sweep.contexts, "batch": sweep.batches}
    return {name: tuple(sorted(values)) for name, values in found.items() if values}


def _families(spec: RunSpec, sweep: SweepSpec, summaries: Summaries) -> list[Family]:
    swept = points_of(sweep)
    measured = {row: _measured(summaries, row) for row in (BASELINE, *(r.label for r in sweep.rows))}
    every = [m for found in measured.values() for m in found]
    along: dict[str, tuple[str, ...]] = {}
    for key in dict.fromkeys(m.metric for m in every):
        points = [_point(m) for m in every if m.metric == key]
        if len({tuple(sorted((k, v) for k, v in p.items() if k not in swept)) for p in points}) == 1:
            along[key] = tuple(name for name in swept if any(name in p for p in points))
    if "perplexity" in along:
        along[DELTA] = along["perplexity"]
    cells = _cells(spec, measured, along)
    return [
        Family(axes, metrics, cells)
        for axes in sorted(set(along.values()), key=len)
        if (metrics := list(_shown([key for key, found in along.items() if found == axes], every)))
    ]


def _measured(summaries: Summaries, label: str) -> list[Measured]:
    return [m for by_method in summaries.values() for m in by_method.get(label, Summary()).measured if m.value is not None]


def _point(found: Measured) -> dict[str, str]:
    """``batch=1,context=512`` → its parts; a point of another form is one part."""
    parts = (part.partition("=") for part in found.point.split(",") if part)
    return {name: value for name, _, value in parts}


def _shown(keys: Sequence[str], every: Sequence[Measured]) -> Iterator[Metric]:
    yield from (metric for metric in METRICS if metric.key in keys)
    known = {metric.key for metric in METRICS} | _LEFT_OUT
    others = [key for key in keys if key not in known][:_OTHERS]
    for key in others:
        yield Metric(key, key.replace("_", " "), 4, next(m.better for m in every if m.metric == key))


def _cells(
    spec: RunSpec, measured: Mapping[str, Sequence[Measured]], along: Mapping[str, tuple[str, ...]]
) -> dict[tuple[str, At, str], Cell]:
    """Figures by row, point and metric; where a metric's points name their context, one that names none is at the run's."""
    found: dict[tuple[str, At, str], Cell] = {}
    base: dict[At, Measured] = {}
    for label, values in measured.items():
        for m in (m for m in values if m.metric in along and m.value is not None):
            point = {"context": str(spec.context)} | _point(m)
            at = tuple(int(point[name]) for name in along[m.metric])
            found[label, at, m.metric] = Cell(float(m.value or 0.0), m.low, m.high)
            if m.metric == "perplexity" and label == BASELINE:
                base[at] = m
            elif m.metric == "perplexity" and at in base and (change := _change(base[at], m)) is not None:
                found[label, at, DELTA] = change
    return found


def _change(base: Measured, own: Measured) -> Cell | None:
    """Change of perplexity in %, from the samples that both have."""
    before, after = shared(base.samples, own.samples)
    if not before or own.scale != "log":
        return None
    change = paired(before, after, "loss")
    value, low, high = (None if v is None else 100 * math.expm1(min(v, 700.0)) for v in (change.difference, change.low, change.high))
    return None if value is None else Cell(value, low, high)


def _table(sweep: SweepSpec, family: Family, *, with_place: bool) -> Table:
    names = [name for name, _ in sweep.axes]
    metrics = [m for m in family.metrics if any(key[2] == m.key for key in family.cells)]
    rows = [
        [method, *map(_value, at), *map(_value, point), *(_text(m, family.cells.get((label, point, m.key))) for m in metrics)]
        for label, method, at in [(BASELINE, BASELINE, (None,) * len(names)), *_ordered(sweep)]
        for point in _points(sweep, family)
        if any((label, point, m.key) in family.cells for m in metrics)
    ]
    axes = [*names, *family.along]
    place = "by-" + "-".join(family.along or ("setting",)) if with_place else "settings"
    title = "Settings" + (f" of ablation {sweep.ablation}" if sweep.ablation else "") + f" by {', '.join(axes)}"
    return Table(
        place, title, ["method", *axes, *(m.heading for m in metrics)], rows, left=1, factors=any(m.key == FACTOR for m in metrics)
    )


def _ordered(sweep: SweepSpec) -> list[tuple[str, str, At]]:
    """(label, method, values), by method in the order asked for, then along the axes."""
    methods = list(dict.fromkeys(row.method for row in sweep.rows))
    axes = [list(_rising(values)) for _, values in sweep.axes]

    def place(row: tuple[str, str, At]) -> tuple[int, ...]:
        return (methods.index(row[1]), *(-1 if v is None else axis.index(v) for axis, v in zip(axes, row[2], strict=True)))

    return sorted(((row.label, row.method, row.at) for row in sweep.rows), key=place)


def _rising(values: Sequence[ParamValue]) -> Sequence[ParamValue]:
    """Numbers by size; anything else as it was asked for."""
    return sorted(values) if all(isinstance(v, int | float) for v in values) else values


def _points(sweep: SweepSpec, family: Family) -> Iterator[At]:
    swept = points_of(sweep)
    return product(*(swept[name] for name in family.along))


def _value(value: ParamValue | None) -> str:
    return NONE if value is None else format_value(value)


def _text(metric: Metric, cell: Cell | None) -> str:
    if cell is None:
        return NONE
    if metric.key != DELTA:
        return fixed(cell.value * metric.scale, metric.decimals) + metric.suffix
    return with_interval(signed(cell.value, metric.decimals, _CELL), cell.low, cell.high, metric.decimals, _CELL)


def _grids(sweep: SweepSpec, family: Family) -> Iterator[Grid]:
    """For each metric and method a heat map, where the method's rows differ along just two axes; one scale for all methods."""
    for metric in (m for m in family.metrics if m.in_grids):
        drawn = [grid for method in dict.fromkeys(r.method for r in sweep.rows) if (grid := _grid(sweep, family, metric, method))]
        values = [v for grid in drawn for row in grid.values for v in row if v is not None]
        for grid in drawn:
            yield replace(grid, low=min(values), high=max(values))


def _grid(sweep: SweepSpec, family: Family, metric: Metric, method: str) -> Grid | None:
    own = [row for row in _ordered(sweep) if row[1] == method]
    names = [*(name for name, _ in sweep.axes), *family.along]
    cells = {
        (*at, *point): family.cells[label, point, metric.key].value * metric.scale
        for label, _, at in own
        for point in _points(sweep, family)
        if (label, point, metric.key) in family.cells
    }
    values = [list(dict.fromkeys(at[i] for at in cells)) for i in range(len(names))]
    free = [i for i, found in enumerate(values) if len(found) > 1]
    if len(free) != 2:
        return None
    by_place = {(at[free[0]], at[free[1]]): value for at, value in cells.items()}
    down, across = (values[i] for i in free)
    return Grid(
        metric.key, f"{metric.heading.partition(' [')[0]} by {names[free[0]]} and {names[free[1]]}", method,
        [_value(v) for v in down], [_value(v) for v in across], [[by_place.get((d, a)) for a in across] for d in down],
        names[free[0]], names[free[1]], good="low" if metric.better == "lower" else "high", factors=metric.key == FACTOR,
    )  # fmt: skip
