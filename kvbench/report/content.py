"""What a report says, in its order, before any format: facts, then sections of tables, heat maps and lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvbench.evaluators.registered import evaluators_of
from kvbench.figures import Figure, Table
from kvbench.formats import NONE, fixed
from kvbench.metrics import factors
from kvbench.metrics.front import Point, points
from kvbench.metrics.row import Row
from kvbench.record import results
from kvbench.record.state import RunState
from kvbench.record.summary import figures, rows
from kvbench.report.command import command_of
from kvbench.report.facts import facts_of
from kvbench.report.overview import budget_notes, failures, left_out, main_table, missing, rounding_notes, sameness_notes

MORE = (
    ("NLL", "avg_nll", 4), ("PPL low", "perplexity_low", 2), ("PPL high", "perplexity_high", 2), ("KL p50", "kl_p50", 4),
    ("KL p90", "kl_p90", 4), ("KL p99", "kl_p99", 4), ("KL max", "kl_max", 3), ("ECE", "ece", 4),
    ("rounding NLL", "rounding_nll", 6), ("rounding KL", "rounding_kl", 6), ("most moved token", "rounding_nll_max", 4),
    ("tokens", "total_tokens", 0), ("read compressed", "tokens_read_compressed", 0), ("factor at end", "compression_factor_end", 2),
)  # fmt: skip
"""Heading, field and decimals of what the main table has no room for."""


@dataclass(frozen=True)
class Section:
    """A heading, lines of words, and figures under it; ``lines`` are facts, ``code`` is to be typed."""

    title: str
    figures: Sequence[Figure] = ()
    lines: Sequence[str] = ()
    code: str = ""
    points: Sequence[Point] = ()


@dataclass(frozen=True)
class Report:
    """A run's report.

    Attributes:
        title: The run's name. warning: What a reader must know first, empty if nothing. facts: Name and value.
    """

    title: str
    warning: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def build(result: Mapping[str, Any]) -> Report:
    """The report of a loaded result (:func:`kvbench.record.results.load`)."""
    state = results.to_state(result)
    found = rows(state)
    sections = [
        Section(
            "Methods",
            [main_table(found), *_more(result)],
            [*rounding_notes(found), *sameness_notes(found), *budget_notes(found)],
            points=_points(found),
        ),
        *_evaluators(state),
        Section("Published figures", _published(result)),
        Section("Audit", _audit(result)),
        Section("Failures", lines=failures(state, found)),
        Section("Left out", lines=[*missing(state), *_left_out(state)]),
        Section("Data", lines=_data(state)),
        Section("The run's command", code=command_of(state.spec) if state.spec else ""),
    ]
    warning = "" if result["complete"] else "This run is not complete: figures rest on what it has so far."
    return Report(str(result["run"]), warning, facts_of(state), [s for s in sections if s.figures or s.lines or s.code])


def _more(result: Mapping[str, Any]) -> list[Table]:
    """What was scored beside the main figures, where perplexity was."""
    shown = [(heading, key, decimals) for heading, key, decimals in MORE if any(row.get(key) is not None for row in result["results"])]
    if not shown:
        return []
    body = [[row["method"], *(_number(row.get(key), decimals) for _, key, decimals in shown)] for row in result["results"]]
    notes = ["NLL and KL in nats per token; KL percentiles over all scored tokens; low and high are 95 % over samples."]
    if any(key == "rounding_nll" for _, key, _ in shown):
        notes.append("rounding: how far the same tokens in another shape move NLL and KL, means and the most moved token's NLL")
    return [Table("more", "Likelihood in detail", ["method", *(heading for heading, _, _ in shown)], body, notes=[*notes, *_of(result)])]


def _of(result: Mapping[str, Any]) -> list[str]:
    return factors.notes(result["model"].get("cache_dtype"))


def _number(value: Any, decimals: int) -> str:
    return NONE if value is None else f"{value:,}" if isinstance(value, int) else fixed(value, decimals)


def _points(found: Sequence[Row]) -> list[Point]:
    """What has a place on logarithmic axes and is read by attention."""
    return [point for point in points([row for row in found if row.audit not in ("no-op", "masked")]) if point.kl > 0]


def _evaluators(state: RunState) -> list[Section]:
    """One section an evaluator that shows figures, in the run's order, the sweep first."""
    titles = {e.name: f"{e.name}: {e.title}" for e in evaluators_of(state.spec)} if state.spec else {}
    return [Section(titles.get(name, "Sweep"), shown) for name, shown in figures(state).items()]


def _published(result: Mapping[str, Any]) -> list[Figure]:
    from kvbench.published.beside import table

    found = table(result)
    return factors.noted([found], result["model"].get("cache_dtype")) if found.rows else []


def _audit(result: Mapping[str, Any]) -> list[Figure]:
    """Every check of every method, with what a check that did not pass found."""
    rows = [row for row in result["results"] if row.get("audit_checks")]
    names = list(dict.fromkeys(name for row in rows for name in row["audit_checks"]))
    if not names:
        return []
    body = [[row["method"], str(row["audit"]), *(_passed(row["audit_checks"].get(name)) for name in names)] for row in rows]
    notes = [
        f"{row['method']}, {name}: {check.get('detail') or 'no detail'}"
        for row in rows
        for name, check in row["audit_checks"].items()
        if not check.get("passed") and row["audit"] != "reference"
    ]
    title = "Are the bytes really fewer, and are they what attention reads?"
    return [Table("audit", title, ["method", "label", *names], body, left=2 + len(names), notes=notes)]


def _passed(check: Mapping[str, Any] | None) -> str:
    return NONE if check is None else "yes" if check.get("passed") else "no"


def _left_out(state: RunState) -> list[str]:
    """What evaluators said that they did without."""
    return [f"{evaluator}, {what}: {why}" for evaluator, what, why in left_out(state)]


def _data(state: RunState) -> list[str]:
    """What evaluators said of their data, but for what they did without."""
    return [
        line
        for name, facts in state.prepared.items()
        for key, value in facts.items()
        if key != "left_out"
        for line in _flat(f"{name}.{key}", value)
    ]


def _flat(name: str, value: Any) -> list[str]:
    """Nested plain data as lines ``tasks.gsm8k.source: …``, the innermost on one line; what is empty says nothing."""
    if isinstance(value, Mapping) and len(value) > 1 and all(isinstance(v, str | int | float) for v in value.values()):
        inside = ", ".join(line.removeprefix(f"{name}.") for key, inner in value.items() for line in _flat(f"{name}.{key}", inner))
        return [f"{name}: {inside}"] if inside else []
    if isinstance(value, Mapping):
        return [line for key, inner in value.items() for line in _flat(f"{name}.{key}", inner)]
    if isinstance(value, list | tuple):
        if any(isinstance(item, Mapping | list) for item in value):
            return [line for i, item in enumerate(value) for line in _flat(f"{name}[{i}]", item)]
        value = ", ".join(map(str, value))
    if value in (None, ""):
        return []
    return [f"{name}: {str(value).lower() if isinstance(value, bool) else value}"]
