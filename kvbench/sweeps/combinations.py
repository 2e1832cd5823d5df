"""From axes to a run: every combination of their values is a row, or a point at which rows are measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from kvbench.errors import UnknownName, UsageError
from kvbench.spec import EvaluatorSpec, MethodSpec, ParamValue, RunSpec, SweepRow, SweepSpec, format_value, parse_value
from kvbench.spec.budgets import parse_budgets

LARGEST = 400
"""Rows and points that one sweep may have: beyond that a table says nothing and a run takes days."""
EXAMPLE = "for example --over rank=32,48,64"
MEASURED_AT: Mapping[str, tuple[str, ...]] = {"context": ("perplexity", "speed", "memory"), "batch": ("speed", "memory")}
"""Axis that is no method's parameter → the evaluators that measure every row at each of its values."""

Values = tuple[ParamValue, ...]
Axes = Mapping[str, Values]


@dataclass(frozen=True)
class Setting:
    """One row to be: the method that it is a setting of, as written; what it comes to; its value on each axis that it has."""

    method: str
    spec: MethodSpec
    at: Mapping[str, ParamValue]


@dataclass(frozen=True)
class Sweep:
    """What is to be run.

    Attributes:
        axes: Those that tell rows apart. settings: The rows.
        contexts, batches: Points at which every row is measured, where those are swept. ablation: Its name, if it has one.
    """

    axes: Axes
    settings: tuple[Setting, ...]
    contexts: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    ablation: str | None = None


def parse_axes(texts: Iterable[str]) -> dict[str, Values]:
    """Read ``name=value,value,...`` of each axis.

    Raises:
        UsageError: no name, no values, a value or an axis given twice, or a length or batch that is none.
    """
    found: dict[str, Values] = {}
    for text in texts:
        name, equals, rest = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise UsageError(f"--over '{text}' is not PARAMETER=VALUE,VALUE", hint=EXAMPLE)
        if name in found:
            raise UsageError(f"axis '{name}' is given twice", hint=f"--over {name}={_joined(found[name])},{rest}")
        found[name] = _values(name, rest)
    return found


def _values(name: str, text: str) -> Values:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"--over {name}={text} has an empty value", hint=EXAMPLE)
    values = tuple(map(parse_value, parts))
    for value in values:
        if values.count(value) > 1:
            raise UsageError(f"--over {name}={text} names {format_value(value)} twice", hint="name each value once")
        if name in MEASURED_AT and (type(value) is not int or value < 1):
            what = f"--over {name}={text}: {format_value(value)} is no whole number above 0"
            raise UsageError(what, hint=f"for example --over {name}=1,8")
    return values


def _joined(values: Sequence[ParamValue]) -> str:
    return ",".join(map(format_value, values))


def of_methods(methods: Sequence[MethodSpec], axes: Axes) -> Sweep:
    """Every method at every combination of the axes' values.

    Raises:
        UnknownName: a method, or a parameter that one of the methods does not have.
        UsageError: nothing to sweep, a method twice, a parameter that a method fixes itself, or more than ``LARGEST`` rows.
    """
    if not methods:
        raise UsageError("a sweep needs a method", hint="--method NAME, or --ablation NAME")
    if not axes:
        raise UsageError("a sweep needs an axis", hint=EXAMPLE)
    labels = [method.label for method in methods]
    if len(set(labels)) < len(labels):
        raise UsageError(f"--method names {next(m for m in labels if labels.count(m) > 1)} twice", hint="name each method once")
    own = {name: values for name, values in axes.items() if name not in MEASURED_AT}
    for method in methods:
        _check_parameters(method, own)
    check_size(axes, len(methods))
    return with_points(own, tuple(_crossed(methods, own)), axes)


def with_points(own: Axes, settings: tuple[Setting, ...], axes: Axes, ablation: str | None = None) -> Sweep:
    """A sweep whose points come from those of ``axes`` that are no method's parameters."""
    contexts, batches = (tuple(int(v) for v in axes.get(name, ())) for name in MEASURED_AT)
    return Sweep(own, settings, contexts, batches, ablation)


def check_size(axes: Axes, rows: int) -> None:
    """Refuse more than ``LARGEST`` rows and points: ``rows`` times every axis of ``axes``.

    Raises:
        UsageError: says how many there would be.
    """
    for values in axes.values():
        rows *= len(values)
    if rows > LARGEST:
        sizes = " × ".join(f"{len(values)} {name}" for name, values in axes.items())
        raise UsageError(f"this sweep has {rows:,} rows ({sizes}); {LARGEST} are the most", hint="fewer values, or several sweeps")


def _crossed(methods: Sequence[MethodSpec], axes: Axes) -> Iterator[Setting]:
    for method in methods:
        for values in product(*axes.values()):
            at = dict(zip(axes, values, strict=True))
            yield Setting(method.label, method.turned(at), at)


def _check_parameters(method: MethodSpec, axes: Axes) -> None:
    """Every axis is a parameter that the method has and does not fix."""
    parts = {prefix: part for prefix, part in (("", method), ("+", method.store)) if part is not None}
    names = {prefix: _names(part) for prefix, part in parts.items()}
    known = [prefix + name for prefix in parts for name in names[prefix]]
    for name in axes:
        prefix, key = ("+", name[1:]) if name.startswith("+") else ("", name)
        part = parts.get(prefix)
        if part is None or not (key in names[prefix] or _takes_any(part)):
            raise UnknownName(f"parameter of method {method.label}:", name, known, hint="kvbench list methods")
        if key in {given or names[prefix][0] for given in part.options}:
            raise UsageError(f"--method {method.label} fixes {key}, which --over {name} sweeps", hint=f"leave {key} out of one of them")


def _names(method: MethodSpec) -> list[str]:
    from kvbench.methods.registered import METHODS

    return [name for name, _, _ in METHODS.load(method.name).parameters()]


def _takes_any(method: MethodSpec) -> bool:
    from kvbench.methods.registered import METHODS

    return METHODS.load(method.name).takes_rest is not None


def apply(spec: RunSpec, sweep: Sweep) -> RunSpec:
    """The run that measures ``sweep`` beside the methods of ``spec``: its rows, its points, and where each row stands.

    Raises:
        UsageError: no evaluator of ``spec`` measures at a swept length or batch, or one says itself at which.
    """
    from kvbench.methods.registered import expand

    labels = [m.label for m in (*spec.methods, *(s.spec for s in sweep.settings))]
    spec = spec.with_changes(methods=expand(labels, spec.budget, spec.protocol))
    for axis, values in (("context", sweep.contexts), ("batch", sweep.batches)):
        if values:
            spec = spec.with_changes(evaluators=_measured_at(spec.evaluators, axis, values))
    if sweep.contexts:
        spec = spec.with_changes(context=max(sweep.contexts))
    return spec.with_changes(sweep=_recorded(spec, sweep)).validate()


def _measured_at(evaluators: Sequence[EvaluatorSpec], axis: str, values: Sequence[int]) -> tuple[EvaluatorSpec, ...]:
    """``context=1024+512`` for the evaluators that have it, the largest length first: it is the run's, which rows show."""
    able = MEASURED_AT[axis]
    if not any(e.name in able for e in evaluators):
        raise UsageError(f"no evaluator of this run measures at several values of {axis}", hint=f"--evals {','.join(able)}")
    text = "+".join(map(str, sorted(values, reverse=axis == "context")))
    found = []
    for e in evaluators:
        if e.name in able and axis in e.options:
            raise UsageError(f"--evals {e.label} fixes {axis}, which --over {axis} sweeps", hint=f"leave {axis} out of one of them")
        found.append(replace(e, params=(*e.params, (axis, text))) if e.name in able else e)
    return tuple(found)


def _recorded(spec: RunSpec, sweep: Sweep) -> SweepSpec:
    """Where each of the run's rows stands; a budget of the whole run is an axis like others."""
    budgets = tuple(b.text for b in parse_budgets(spec.budget)) if spec.budget else ()
    settings = {setting.spec.label: setting for setting in sweep.settings}
    rows = []
    for method in spec.methods:
        setting = settings.get(method.label) or settings.get(replace(method, budget=None).label)
        if setting is not None:
            budget = (method.budget if method.budget in budgets else None,) if budgets else ()
            rows.append(SweepRow(method.label, setting.method, (*(setting.at.get(name) for name in sweep.axes), *budget)))
    axes = (*sweep.axes.items(), *([("budget", budgets)] if budgets else []))
    return SweepSpec(axes, tuple(rows), sweep.contexts, sweep.batches, sweep.ablation)
