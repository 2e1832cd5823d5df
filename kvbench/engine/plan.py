"""What a run will do, decided before anything is loaded: methods, units, and what cannot be.

The plan is a pure function of the specification, so a plan made again is the same plan. Units are
in order of evaluators, and within one in order of samples with every method inside: the audit first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvbench.errors import CorpusError, UsageError
from kvbench.evaluators.base import Evaluator
from kvbench.evaluators.registered import EVALUATORS, evaluators_of
from kvbench.models.shape import Config, shape_of
from kvbench.record.state import RunState
from kvbench.spec import BASELINE, EvaluatorSpec, MethodSpec, RunSpec, Unit, suites
from kvbench.spec.registry import asking

if TYPE_CHECKING:
    from kvbench.methods.method import Method
    from kvbench.record.events import BudgetSolved

AUDIT = EvaluatorSpec("audit")


@dataclass(frozen=True)
class Plan:
    """Methods by label in table order, and units in the order in which they are done."""

    spec: RunSpec
    methods: Mapping[str, Method]
    units: Sequence[Unit]


def complete(spec: RunSpec) -> RunSpec:
    """The specification with its controls: ``baseline`` above and ``random`` below, every method if none is named, suites expanded.

    Raises:
        UsageError: a name or value that no run can have.
    """
    from kvbench.methods.registered import expand, left_out

    asked = [m.label for m in spec.methods] or ["all"]
    methods = expand(asked, spec.budget, spec.protocol)
    evaluators = suites.expand(spec.evaluators or [EvaluatorSpec(suites.DEFAULT)], EVALUATORS.names())
    notes = (*spec.notes, *left_out(asked, spec.budget, spec.protocol))
    return spec.with_changes(methods=methods, evaluators=evaluators, notes=notes).validate()


def refuse_taken(methods: Iterable[MethodSpec], evaluators: Iterable[EvaluatorSpec]) -> None:
    """Refuse names that a user wrote and that several packages claim: nobody can tell which was meant.

    Raises:
        UsageError: names the packages.
    """
    from kvbench.methods import registered

    for method in methods:
        registered.refuse_taken(method)
    for evaluator in evaluators:
        EVALUATORS.refuse_taken(evaluator.name)


def plan(spec: RunSpec, config: Config | None = None) -> Plan:
    """Resolve every name and lay out the units; imports no torch.

    Args:
        config: The model's, where it is known and the specification does not hold it.

    Raises:
        UnknownName: a method, evaluator or parameter that does not exist.
        UsageError: a combination that would measure nothing or something else than it says.
        UnsupportedModel: the model's config is known and its attention would be measured wrongly.
        CorpusError: a text file or mirror that is not there.
    """
    spec.validate()
    methods = resolve_methods(spec)
    _check_model(spec, spec.model.config or config, methods)
    evaluators = all_evaluators(spec)
    for evaluator in evaluators:
        _check(spec, evaluator)
    if any(evaluator.needs_text for evaluator in evaluators):
        _check_corpus(spec)
    return Plan(spec, methods, units_of(evaluators, spec, list(methods)))


def units_of(evaluators: Sequence[Evaluator], spec: RunSpec, labels: Sequence[str]) -> list[Unit]:
    """The work of all of them, in order.

    Raises:
        UsageError: one that is another's plans what cannot be done.
    """
    found: dict[str, Unit] = {}
    for evaluator in evaluators:
        with asking(f"evaluator '{evaluator.name}'", "kvbench list evaluators"):
            for unit in evaluator.units(spec, labels):
                _check_unit(unit, evaluator, labels)
                if unit.id in found:
                    raise ValueError(f"it plans unit '{unit.id}', which is planned already")
                found[unit.id] = unit
    return list(found.values())


def _check_unit(unit: Unit, evaluator: Evaluator, labels: Sequence[str]) -> None:
    if not isinstance(unit, Unit):
        raise TypeError(f"it plans {type(unit).__name__} where a unit should be")
    if unit.evaluator != evaluator.name or not set(unit.methods) <= set(labels):
        raise ValueError(f"its unit '{unit.id}' is of another evaluator, or of methods that are not in this run")


def laid_out(spec: RunSpec) -> tuple[list[Unit], list[str]]:
    """The units and row labels of a plan that was made before, without asking again whether it can be done.

    Raises:
        UsageError: an evaluator that is not there any more.
    """
    labels = sorted((m.label for m in spec.methods), key=lambda label: label != BASELINE)
    return units_of(all_evaluators(spec), spec, labels), labels


def resolve_methods(spec: RunSpec, budgets: Mapping[str, BudgetSolved] | None = None) -> dict[str, Method]:
    """Row label → method, the baseline first.

    Args:
        budgets: Row label → what its budget came to, where that is known already.

    Raises:
        UsageError: the baseline is missing or has a budget, a method cannot be built from its parameters, or the protocol is
            none of its own.
    """
    from kvbench.methods.registered import resolve

    for method_spec in spec.methods:
        if method_spec.name == BASELINE and method_spec.budget is not None:
            raise UsageError(f"'{method_spec.label}': the baseline is what budgets are counted from", hint="leave its budget out")
    if BASELINE not in [m.label for m in spec.methods]:
        raise UsageError("there is nothing to compare with: the methods lack 'baseline'", hint=f"add {BASELINE} to the methods")
    turned = {label: found.parameters for label, found in (budgets or {}).items()}
    methods = {m.label: resolve(m, spec, turned.get(m.label)) for m in sorted(spec.methods, key=lambda m: m.label != BASELINE)}
    for label, method in methods.items():
        if spec.protocol not in method.protocols:
            raise UsageError(
                f"method '{label}' cannot follow protocol '{spec.protocol}'", hint=f"--protocol {method.protocols[0]}, or leave it out"
            )
    return methods


def all_evaluators(spec: RunSpec) -> list[Evaluator]:
    """The audit, which every run makes, then what the specification asks for."""
    asked = [e for e in spec.evaluators if e.name != AUDIT.name]
    audit = next((e for e in spec.evaluators if e.name == AUDIT.name), AUDIT)
    return evaluators_of(spec.with_changes(evaluators=(audit, *asked)))


def _check_model(spec: RunSpec, config: Config | None, methods: Mapping[str, Method]) -> None:
    """What a known config already refuses; other models are checked when they are loaded."""
    if config is None:
        return
    from kvbench.instruments.fit import check_fit

    check_fit(spec, methods, evaluators_of(spec), config, shape_of(config))


def _check_corpus(spec: RunSpec) -> None:
    """What can be said of the text before it is read."""
    from kvbench.texts.corpora import CORPORA, open_text

    name = spec.corpus.name
    text = open_text(name, spec.corpus.data_dir)
    if name in CORPORA:
        return
    if not Path(name).expanduser().is_file():
        raise CorpusError(f"corpus '{name}' is not there", hint="check --corpus")
    text.at_least(1)  # refuses what is no UTF-8 or no JSON


def _check(spec: RunSpec, evaluator: Evaluator) -> None:
    if spec.model.random_weights and evaluator.needs_weights:
        raise UsageError(
            f"evaluator '{evaluator.name}' scores text and says nothing about random weights",
            hint="--evals speed,memory, or leave out --random-weights",
        )
    if spec.protocol not in evaluator.protocols:
        raise UsageError(
            f"evaluator '{evaluator.name}' cannot follow protocol '{spec.protocol}' (it can: {', '.join(evaluator.protocols)})",
            hint=f"--protocol {evaluator.protocols[0]}, or other --evals",
        )
    with asking(f"evaluator '{evaluator.name}'", "kvbench list evaluators"):
        evaluator.check(spec)


def units_left(state: RunState) -> list[Unit]:
    """What is neither finished nor lost, in order."""
    return [unit for key, unit in state.units.items() if key not in state.done and key not in state.lost]
