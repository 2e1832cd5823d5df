"""Named sets of evaluators: from a quick look (``essential``) to a paper's tables (``extended``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kvbench.errors import UnknownName, UsageError
from kvbench.spec.named import EvaluatorSpec

_ESSENTIAL = ("perplexity", "speed", "memory")
_RECOMMENDED = (*_ESSENTIAL, "reconstruction", "attention_similarity", "spectrum")
# Data of these may not be there: a suite then goes on without them and says so, where a name of one's own is refused.
_TASKS = ("needle", "tasks:missing=skip", "longbench:missing=skip", "ruler:missing=skip", "drift")

SUITES: Mapping[str, tuple[str, ...]] = {"essential": _ESSENTIAL, "recommended": _RECOMMENDED, "extended": (*_RECOMMENDED, *_TASKS)}
"""Suite → its evaluators, as ``--evals`` would name them."""
DEFAULT = "essential"
"""What a run measures that names nothing."""
TITLES: Mapping[str, str] = {
    "essential": "quality on text, time and memory: every method in minutes",
    "recommended": "essential, and what each layer loses",
    "extended": "recommended, and what answers lose: retrieval, tasks, long documents, free-running text",
}


def members(name: str) -> list[EvaluatorSpec]:
    """The evaluators of a suite."""
    return [EvaluatorSpec.parse(text) for text in SUITES[name]]


def expand(asked: Iterable[EvaluatorSpec], known: Sequence[str]) -> tuple[EvaluatorSpec, ...]:
    """Suites in place of their names, each evaluator once; one that is asked for by name replaces a suite's own.

    Args:
        known: The evaluators that there are.

    Raises:
        UnknownName: neither a suite nor an evaluator.
        UsageError: a suite with parameters, or one evaluator by name with different parameters.
    """
    found: dict[str, EvaluatorSpec] = {}
    named: dict[str, EvaluatorSpec] = {}
    for spec in asked:
        if spec.name in SUITES:
            _check_bare(spec)
            found |= {member.name: member for member in members(spec.name) if member.name not in found}
            continue
        if spec.name not in known:
            raise UnknownName("evaluator or suite", spec.name, [*SUITES, *known], hint="kvbench list evaluators")
        before = named.setdefault(spec.name, spec)
        if before != spec:
            raise UsageError(
                f"evaluator '{spec.name}' is asked for twice, as '{before.label}' and as '{spec.label}'",
                hint="join several values by +, for example speed:batch=1+8",
            )
        found[spec.name] = spec
    return tuple(found.values())


def _check_bare(spec: EvaluatorSpec) -> None:
    if spec.params:
        example = f"{spec.name},{members(spec.name)[0].name}:{spec.label.partition(':')[2]}"
        raise UsageError(f"'{spec.name}' is a suite and takes no parameters", hint=f"name the evaluator as well: --evals {example}")
