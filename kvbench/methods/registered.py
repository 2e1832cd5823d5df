"""The methods that are registered, and how a name becomes one of them. Importable without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from kvbench.errors import UsageError
from kvbench.methods.composed import compose
from kvbench.methods.method import Method
from kvbench.spec import CONTROLS, MethodSpec, ParamValue, RunSpec, split_list
from kvbench.spec.budgets import Budget, parse_budgets
from kvbench.spec.parameters import build
from kvbench.spec.registry import Broken, Registry, asking, reason


def facts(cls: type[Method]) -> dict[str, Any]:
    """What ``kvbench list`` says of a method; reads all that a table, ``all`` and the plan read of its class.

    Raises:
        Exception: whatever reading it raises; a ``TypeError`` where something is missing or of another kind.
    """
    for name in ("name", "title", "family", "paper"):
        if not isinstance(getattr(cls, name, None), str):
            raise TypeError(f"its class has no text '{name}'")
    if not all(isinstance(text, str) for text in (*cls.variants, *cls.protocols)):
        raise TypeError("its class has variants or protocols that are no texts")
    read = {"name": cls.name, "title": cls.title, "family": cls.family, "paper": cls.paper, "parameters": cls.parameters()}
    _ = (cls.in_all, cls.selects, cls.stores, cls.takes_rest, cls.trial)
    return {**read, "budget": list(cls.dial.parameters) if cls.dial else []}


METHODS: Registry[Method] = Registry("kvbench.methods", "method", Method, facts, reserved=["all"])


def expand(texts: Sequence[str], budget: str | None = None, protocol: str = "prefill") -> tuple[MethodSpec, ...]:
    """Turn ``--methods`` into specs: ``all`` is every method's variants; the controls come first, always.

    Args:
        budget: Budgets, each of which every method but the baseline is to meet that has none of its own. ``all`` is then
            every method once: what its variants fix is what a budget turns.
        protocol: ``all`` is the methods that are defined under it.

    Raises:
        UnknownName: a method that is not registered.
        UsageError: a budget that is none.
    """
    asked: list[MethodSpec] = [MethodSpec.parse(name) for name in CONTROLS]
    for text in (part for given in texts for part in split_list(given)):
        found = _all(budget, protocol)[0] if text == "all" else [MethodSpec.parse(text)]
        for spec in found:
            METHODS.load(spec.name)
            if spec.store is not None:
                METHODS.load(spec.store.name)
        asked.extend(found)
    if budget is not None:
        asked = _budgeted(asked, parse_budgets(budget))
    return tuple({spec.label: spec for spec in asked}.values())


def named(texts: Sequence[str]) -> tuple[MethodSpec, ...]:
    """The methods that ``--methods`` names one by one."""
    return tuple(MethodSpec.parse(part) for given in texts for part in split_list(given) if part != "all")


def _budgeted(asked: Sequence[MethodSpec], budgets: Sequence[Budget]) -> list[MethodSpec]:
    """Budget by budget, so that rows that may be compared stand together; the baseline and rows with a budget of their own first."""
    free = [spec for spec in asked if spec.budget is None and spec.name != CONTROLS[0]]
    return [*(s for s in asked if s not in free), *(replace(s, budget=budget.text) for budget in budgets for s in free)]


def left_out(texts: Sequence[str], budget: str | None = None, protocol: str = "prefill") -> tuple[str, ...]:
    """A line for each plug-in that ``all`` leaves out of these ``--methods``, since it cannot be used."""
    if "all" not in [part for given in texts for part in split_list(given)]:
        return ()
    return tuple(f"method left out: {broken}" for broken in _all(budget, protocol)[1])


def _all(budget: str | None, protocol: str) -> tuple[list[MethodSpec], list[Broken]]:
    """What ``all`` stands for, and what cannot be used. Each is built once here, so that one that cannot be stops no other."""
    found: list[MethodSpec] = []
    lost = METHODS.broken()
    for name, cls in METHODS.usable().items():
        try:
            variants = [MethodSpec.parse(text) for text in _variants(cls, protocol, all_alike=budget is not None)]
            for spec in variants:
                resolve(spec, RunSpec())
        except Exception as error:
            lost.append(Broken(name, METHODS.source_of(name), reason(error)))
        else:
            found += variants
    return found, lost


def _variants(cls: type[Method], protocol: str, *, all_alike: bool) -> tuple[str, ...]:
    if not cls.in_all or protocol not in cls.protocols:
        return ()
    return (() if all_alike else cls.variants) or (cls.name,)


def resolve(spec: MethodSpec, run: RunSpec, turned: Mapping[str, ParamValue] | None = None) -> Method:
    """The method of ``spec`` with the run's compression ratio as default.

    Args:
        turned: Parameters that its budget set; its label stays what was asked for.

    Raises:
        UnknownName, UsageError: an unknown method or parameter, or a value out of range.
    """
    label, spec = spec.label, spec.turned(turned or {})
    cls = METHODS.load(spec.name)
    has_ratio = any(f.name == "compression_ratio" and f.init for f in fields(cls))
    first = next((name for name, _, _ in cls.parameters()), "")
    asked = {key or first for key, _ in spec.params}
    own = replace(spec, store=None)
    if has_ratio and "compression_ratio" not in asked:
        own = replace(own, params=(*spec.params, ("compression_ratio", run.compression_ratio)))
    method: Method = build(cls, own, "method")
    if spec.store is not None:
        method = compose(method, resolve(spec.store, run), spec.label, _storers)
    object.__setattr__(method, "_label", label)
    return method


def _storers() -> list[str]:
    """Methods that can store what another keeps."""
    return [name for name, cls in METHODS.usable().items() if cls.stores]


def refuse_taken(spec: MethodSpec) -> None:
    """Refuse a method that a user named and that more than one package claims to be.

    Raises:
        UsageError: names the packages.
    """
    if spec.name not in CONTROLS:  # which every run has, whoever claims them
        METHODS.refuse_taken(spec.name)
    if spec.store is not None:
        refuse_taken(spec.store)


def free(text: str) -> MethodSpec:
    """The specification of one method outside a run, where there is no length for which it could meet a budget.

    Raises:
        UsageError: it has a budget, or more than one package claims its name.
    """
    spec = MethodSpec.parse(text)
    if spec.budget is not None:
        hint = f"kvbench run --methods {spec.label} says which parameters meet it"
        raise UsageError(f"'{spec.label}': a budget is met at a run's length, and here is none", hint=hint)
    refuse_taken(spec)
    return spec


@contextmanager
def objections(label: str) -> Iterator[None]:
    """What a method says against a model as a usage error, and whatever else its check raises as well.

    Raises:
        UsageError: names the method.
    """
    with asking(f"method '{label}'", f"kvbench verify {label}"):
        try:
            yield
        except ValueError as error:
            raise refuse(label, error) from error


def refuse(spec: MethodSpec | str, error: ValueError) -> UsageError:
    """A method's own objection as a usage error."""
    label = spec if isinstance(spec, str) else spec.label
    return UsageError(f"method '{label}': {error}", hint=f"kvbench list methods  # parameters of {label.split(':')[0]}")
