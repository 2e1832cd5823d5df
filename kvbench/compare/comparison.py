"""The whole comparison of two results: findings, what only one of them holds, and what a reader should mind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvbench.compare.align import differing, pairs
from kvbench.compare.judge import Finding, judge
from kvbench.compare.sides import Side
from kvbench.metrics import factors
from kvbench.metrics.paired import ALPHA


@dataclass(frozen=True)
class Comparison:
    """Everything that the renderers and thresholds read.

    Attributes:
        only_a, only_b: Methods that one file alone holds.
        warnings: Differences that do not forbid comparing, one line each.
    """

    a: Side
    b: Side
    findings: Sequence[Finding]
    only_a: Sequence[str]
    only_b: Sequence[str]
    warnings: Sequence[str]

    @property
    def tests(self) -> int:
        """Statistical tests made; one whose p is 1 had nothing to find."""
        return sum(f.p is not None and f.p < 1.0 for f in self.findings)

    @property
    def shown(self) -> int:
        """Tests with p < 0.05; about 5 % of all tests would be there if nothing differed."""
        return sum(f.p is not None and f.p < ALPHA for f in self.findings)

    @property
    def methods(self) -> list[str]:
        """Labels of both files, A's order first."""
        return list(dict.fromkeys([*self.a.methods, *self.b.methods]))


def compare(a: Side, b: Side) -> Comparison:
    """Set B against A."""
    return Comparison(
        a, b, judge(pairs(a, b)),
        only_a=[label for label in a.methods if label not in b.methods],
        only_b=[label for label in b.methods if label not in a.methods],
        warnings=[*_incomplete(a, b), *_differences(a.environment, b.environment), *_settings(a, b), *_wide(a, b), *_rows(a, b)],
    )  # fmt: skip


def _incomplete(a: Side, b: Side) -> list[str]:
    return [f"{mark} ({side.name}) is not complete" for mark, side in (("A", a), ("B", b)) if not side.complete]


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return [f"{key} differs: {_told(one)} in A, {_told(other)} in B" for key, (one, other) in differing(a, b).items()]


def _settings(a: Side, b: Side) -> list[str]:
    both = [key for key in a.settings if key in b.settings]  # a calibration that one side never read is no difference
    lines = _differences({key: a.settings[key] for key in both}, {key: b.settings[key] for key in both})
    if a.settings["compression_ratio"] != b.settings["compression_ratio"]:
        lines.append("a method that takes its compression ratio from the run is not the same method in A and B")
    return lines


def _wide(a: Side, b: Side) -> list[str]:
    """Factors over a baseline wider than deployed caches: said once where both sides have the same."""
    said = {mark: factors.notes(side.facts["cache dtype"]) for mark, side in (("A", a), ("B", b))}
    if said["A"] == said["B"]:
        return [f"A's and B's {line}" for line in said["A"]]
    return [f"{mark}'s {line}" for mark, lines in said.items() for line in lines]


def _rows(a: Side, b: Side) -> list[str]:
    """Failures and changed audit labels: the figures stand, but not for the same thing."""
    lines = []
    for label in (label for label in a.methods if label in b.methods):
        one, other = a.methods[label], b.methods[label]
        lines += [
            f"{label} failed in {side}" + (f": {row.error}" if row.error else "")
            for side, row in (("A", one), ("B", other))
            if row.status == "failed"
        ]
        if one.audit != other.audit:
            lines.append(f"{label} is audited as {_told(one.audit)} in A, {_told(other.audit)} in B")
    return lines


def _told(value: Any) -> str:
    return "not recorded" if value is None else str(value)
