"""A comparison as text, Markdown, JSON or CSV. Each renderer returns the whole of stdout."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import orjson

from kvbench.compare.blocks import Cell, block_rows, cut, heading, shared_line
from kvbench.compare.comparison import Comparison
from kvbench.compare.judge import WORDS, Finding, Verdict
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
        title = paint(cut(heading(findings), width), "heading")
        same = shared_line(findings)
        parts.append(f"{title}\n  {same}" if same else f"{title}\n{_indent(_table(findings, paint, width))}")
    parts += [part for part in (_tally(comparison, paint), _alone(comparison), paint(_footer(comparison), "quiet")) if part]
    return "\n\n".join(parts) + "\n"


def markdown(comparison: Comparison) -> str:
    """GitHub tables, with p and Holm's adjusted p, nothing cut."""
    parts = [f"**{mark}** {side.name}: {side.about}" for mark, side in (("A", comparison.a), ("B", comparison.b))]
    for findings in _by_metric(comparison):
        parts.append(f"### {heading(findings)}\n\n" + _github(*block_rows(findings, width=None, with_holm=True)))
    parts += [part for part in (_alone(comparison), _footer(comparison)) if part]
    return "\n\n".join(parts) + "\n"


def json(comparison: Comparison, crossed: Sequence[str] = ()) -> str:
    """Everything, raw: one object; ``crossed`` holds the lines of thresholds that fail."""
    data = {
        "a": _side(comparison, "a"), "b": _side(comparison, "b"), "warnings": comparison.warnings,
        "only_in_a": comparison.only_a, "only_in_b": comparison.only_b,
        "alpha": ALPHA, "tests": comparison.tests, "shown": comparison.shown, "crossed": list(crossed),
        "findings": [_flat(f) for f in comparison.findings],
    }  # fmt: skip
    return orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE, default=str).decode()


def csv_text(comparison: Comparison) -> str:
    """One line a finding, the same fields as in JSON."""
    out = io.StringIO()
    rows = [_flat(f) for f in comparison.findings]
    writer = csv.DictWriter(out, FLAT_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


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


def _side(comparison: Comparison, which: str) -> Mapping[str, Any]:
    side = getattr(comparison, which)
    return {
        "name": side.name,
        "about": side.about,
        "complete": side.complete,
        "facts": side.facts,
        "settings": side.settings,
        "environment": side.environment,
    }


def _by_metric(comparison: Comparison) -> Iterator[list[Finding]]:
    return (list(group) for _, group in groupby(comparison.findings, key=lambda f: f.metric))


def _table(findings: Sequence[Finding], paint: Paint, width: int) -> str:
    from tabulate import tabulate

    header, rows = block_rows(findings, width=width - 2)
    kinds = [WORDS[f.verdict] or "quiet" for f in findings]
    painted = [[*row[:-1], paint(row[-1], kind)] for row, kind in zip(rows, kinds, strict=True)]  # type: ignore[arg-type]
    align = ["right" if name in ("A", "B", "change", "95 % interval", "p") else "left" for name in header]
    return tabulate(painted, header, tablefmt="simple", colalign=align, disable_numparse=True)


def _github(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    safe = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(safe, header, tablefmt="github", disable_numparse=True)


def _indent(block: str) -> str:
    return "\n".join(f"  {line}" for line in block.splitlines())


def _sides(comparison: Comparison, paint: Paint, width: int) -> str:
    sides = (("A", comparison.a), ("B", comparison.b))
    return "\n".join(f"{paint(f'{mark}  {side.name}', 'heading')}\n   {cut(side.about, width - 3)}" for mark, side in sides)


def _tally(comparison: Comparison, paint: Paint) -> str:
    """How many verdicts of each kind a metric has; nothing for a single metric, where the table says it."""
    from tabulate import tabulate

    groups = list(_by_metric(comparison))
    if len(groups) < 2:
        return ""
    rows = []
    for findings in groups:
        counts = Counter(f.verdict for f in findings)
        rows.append([findings[0].metric, *(str(counts[verdict] or "") for verdict, _ in _TALLIED)])
    header = ["metric", *(word for _, word in _TALLIED)]
    align = ["left", *["right"] * len(_TALLIED)]
    return f"{paint('verdicts', 'heading')}\n" + _indent(tabulate(rows, header, tablefmt="simple", colalign=align, disable_numparse=True))


def _alone(comparison: Comparison) -> str:
    sides = (("A", comparison.only_a), ("B", comparison.only_b))
    return "\n".join(f"only in {side}: {', '.join(labels)}" for side, labels in sides if labels)


def _footer(comparison: Comparison) -> str:
    key = "~ nothing shown to differ · x not comparable"
    if not comparison.tests:
        return key
    counted = f"{comparison.shown} of {comparison.tests} tests have p < {ALPHA:g}"
    return f"{key}\n{counted}; chance alone would give about {ALPHA * comparison.tests:.2g} (p is not adjusted)"
