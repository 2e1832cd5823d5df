"""A comparison as text, Markdown, LaTeX, JSON or CSV. Each renderer returns the whole of stdout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from itertools import groupby
from typing import Any

import orjson

from kvbench.compare.blocks import Cell, block, heading, shared_line
from kvbench.compare.comparison import Comparison
from kvbench.compare.judge import WORDS, Finding, Verdict
from kvbench.compare.sides import Side
from kvbench.figures import Table, csv, latex, markdown, terminal
from kvbench.formats import shorten
from kvbench.metrics.paired import ALPHA

Paint = Callable[[str, Cell], str]
"""Colours a table cell or heading by its kind; the identity writes plain text."""
_TALLIED: tuple[tuple[Verdict, str], ...] = (("+", "better"), ("-", "worse"), ("!", "differs"), ("~", "~"), ("x", "x"))


def plain(text: str, kind: Cell) -> str:
    """No colour."""
    return text


def text(comparison: Comparison, paint: Paint = plain, width: int = 120) -> str:
    """Aligned tables, one block a metric with methods as rows, at most ``width`` columns."""
    parts = [_sides(comparison, paint, width)]
    for findings in _by_metric(comparison):
        title = paint(shorten(heading(findings), width), "heading")
        same = shared_line(findings)
        parts.append(f"{title}\n  {same}" if same else f"{title}\n{_indent(_table(findings, paint, width))}")
    parts += [part for part in (_tally(comparison, paint), _alone(comparison), paint(_footer(comparison), "quiet")) if part]
    return "\n\n".join(parts) + "\n"


def markdown_text(comparison: Comparison) -> str:
    """GitHub tables, with p and Holm's adjusted p, nothing cut."""
    parts = [f"**{mark}** {side.name}: {side.about}" for mark, side in _marked(comparison)]
    parts += [f"### {table.title}\n\n{markdown.aligned(table)}" for table in _whole(comparison)]
    parts += [part for part in (_alone(comparison), _footer(comparison)) if part]
    return "\n\n".join(parts) + "\n"


def latex_text(comparison: Comparison) -> str:
    """Tables for a paper, as Markdown has them; what else there is to say is in remarks."""
    sides = latex.remarks([f"{mark} {side.name}: {side.about}" for mark, side in _marked(comparison)])
    words = latex.remarks([*_alone(comparison).splitlines(), *_footer(comparison).splitlines()])
    return "\n\n".join([sides, *map(latex.floating, _whole(comparison)), words]) + "\n"


def json(comparison: Comparison, crossed: Sequence[str] = ()) -> str:
    """Everything, raw: one object; ``crossed`` holds the lines of thresholds that fail."""
    data = {
        "a": _side(comparison.a), "b": _side(comparison.b), "warnings": comparison.warnings,
        "only_in_a": comparison.only_a, "only_in_b": comparison.only_b,
        "alpha": ALPHA, "tests": comparison.tests, "shown": comparison.shown, "crossed": list(crossed),
        "findings": [_flat(f) for f in comparison.findings],
    }  # fmt: skip
    return orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE, default=str).decode()


def csv_text(comparison: Comparison) -> str:
    """One line a finding, the same fields as in JSON."""
    return csv.table([FLAT_FIELDS, *(list(_flat(f).values()) for f in comparison.findings)])


FLAT_FIELDS = (
    "method", "metric", "point", "unit", "evidence", "better", "a", "b", "change", "change_low", "change_high",
    "change_pct", "change_pct_low", "change_pct_high", "p", "p_holm", "test", "n_a", "n_b", "verdict", "verdict_word", "note",
    "rounding", "audit_a", "audit_b",
)  # fmt: skip


def _flat(f: Finding) -> dict[str, Any]:
    names = ("change", "change_low", "change_high", "change_pct", "change_pct_low", "change_pct_high")
    changes = dict(zip(names, asdict(f.change).values(), strict=True))
    found = {**asdict(f), **changes, "p_holm": f.holm, "verdict_word": WORDS[f.verdict] or "no difference shown"}
    return {name: found[name] for name in FLAT_FIELDS}


def _side(side: Side) -> dict[str, Any]:
    return {f.name: getattr(side, f.name) for f in fields(side) if f.name != "methods"}


def _by_metric(comparison: Comparison) -> Iterator[list[Finding]]:
    return (list(group) for _, group in groupby(comparison.findings, key=lambda f: f.metric))


def _whole(comparison: Comparison) -> Iterator[Table]:
    return (block(findings, width=None, with_holm=True) for findings in _by_metric(comparison))


def _table(findings: Sequence[Finding], paint: Paint, width: int) -> str:
    table = block(findings, width=width - 2)
    kinds: list[Cell] = [WORDS[f.verdict] or "quiet" for f in findings]  # type: ignore[misc]
    painted = [[*row[:-1], paint(row[-1], kind)] for row, kind in zip(table.rows, kinds, strict=True)]
    return terminal.columns(replace(table, rows=painted))


def _indent(block: str) -> str:
    return "\n".join(f"  {line}" for line in block.splitlines())


def _marked(comparison: Comparison) -> tuple[tuple[str, Side], ...]:
    return ("A", comparison.a), ("B", comparison.b)


def _sides(comparison: Comparison, paint: Paint, width: int) -> str:
    return "\n".join(
        f"{paint(f'{mark}  {side.name}', 'heading')}\n   {shorten(side.about, width - 3)}" for mark, side in _marked(comparison)
    )


def _tally(comparison: Comparison, paint: Paint) -> str:
    """How many verdicts of each kind a metric has; nothing for a single metric, where the table says it."""
    groups = [(findings[0].metric, Counter(f.verdict for f in findings)) for findings in _by_metric(comparison)]
    if len(groups) < 2:
        return ""
    rows = [[metric, *(str(counts[verdict] or "") for verdict, _ in _TALLIED)] for metric, counts in groups]
    table = Table("verdicts", "", ["metric", *(word for _, word in _TALLIED)], rows, sides="l" + "r" * len(_TALLIED))
    return f"{paint('verdicts', 'heading')}\n{_indent(terminal.columns(table))}"


def _alone(comparison: Comparison) -> str:
    sides = (("A", comparison.only_a), ("B", comparison.only_b))
    return "\n".join(f"only in {side}: {', '.join(labels)}" for side, labels in sides if labels)


def _footer(comparison: Comparison) -> str:
    key = "~ nothing shown to differ · x not comparable"
    if not comparison.tests:
        return key
    counted = f"{comparison.shown} of {comparison.tests} tests have p < {ALPHA:g}"
    return f"{key}\n{counted}; chance alone would give about {ALPHA * comparison.tests:.2g} (p is not adjusted)"
