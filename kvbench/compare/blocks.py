"""One metric's block: its heading, and a row of texts for each method and point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kvbench.compare.digits import both, change_text, interval_text, p_text, unit_of
from kvbench.compare.judge import WORDS, Finding
from kvbench.figures import Table
from kvbench.figures.widths import GAP, HEADING_ROOM
from kvbench.formats import shorten
from kvbench.metrics.paired import BOOTSTRAP, MCNEMAR, SIGN, STUDENT

Cell = Literal["heading", "quiet", "better", "worse", "differs", "not comparable"]
_HOW = {"exact": "by value", "paired": "not tested", "noisy": "medians of repeats, Mann-Whitney"}
_TESTS = {MCNEMAR: "exact McNemar test", BOOTSTRAP: "paired bootstrap", STUDENT: "paired t test", SIGN: "sign test"}
_LEFT = ("method", "point", "p (Holm)", "verdict")
"""Columns that are set to the left."""
_NARROWEST = 12


def heading(findings: Sequence[Finding]) -> str:
    """``kl_mean (nats) · lower is better · paired t test on 8 shared samples``."""
    first = findings[0]
    unit, _ = unit_of(findings)
    counts = {f.n_a for f in findings if f.verdict != "x"} | {f.n_b for f in findings if f.verdict != "x"}
    how = _how(findings)
    if len(counts) == 1 and first.evidence != "exact":
        how = how.replace("shared", f"{counts.copy().pop()} shared").replace("repeats", f"{counts.copy().pop()} repeats")
    better = f"{first.better} is better" if first.better != "neither" else "neither way is better"
    shared = ",".join(_shared_point(findings))
    return f"{first.metric}{f' ({unit})' if unit else ''}{f' at {shared}' if shared else ''} · {better} · {how}"


def _how(findings: Sequence[Finding]) -> str:
    """By what the block's figures were told apart."""
    tests = [name for test, name in _TESTS.items() if any(f.test == test for f in findings)]
    return f"{', '.join(tests)} on shared samples" if tests else _HOW[findings[0].evidence]


def _shared_point(findings: Sequence[Finding]) -> list[str]:
    """The parts of the point that all rows have: they go into the heading, and what tells rows apart stays."""
    first, *others = (f.point.split(",") for f in findings)
    return [part for part in first if part and all(part in other for other in others)]


def shared_line(findings: Sequence[Finding]) -> str | None:
    """What to write instead of a table whose every row would say the same."""
    if len(findings) < 2:
        return None
    count = f"all {len(findings)} rows"
    if all(f.verdict == "x" for f in findings) and len({f.note for f in findings}) == 1:
        return f"x  {count}: {findings[0].note}"
    if all(f.verdict == "~" and f.a == f.b and f.change.absolute == 0.0 for f in findings):
        return f"~  {count} are equal"
    return None


def block(findings: Sequence[Finding], width: int | None, *, with_holm: bool = False) -> Table:
    """The block as a table; columns that would be empty are left out, and long names are cut to keep to ``width``."""
    _, size = unit_of(findings)
    shared = _shared_point(findings)
    rows = [_row(f, size, shared, with_holm) for f in findings]
    header = ["method", "point", "A", "B", "change", "95 % interval", "p", *(["p (Holm)"] if with_holm else []), "verdict"]
    kept = [i for i, name in enumerate(header) if name not in ("point", "95 % interval", "p", "p (Holm)") or any(row[i] for row in rows)]
    header, rows = [header[i] for i in kept], [[row[i] for i in kept] for row in rows]
    sides = "".join("l" if name in _LEFT else "r" for name in header)
    return Table(findings[0].metric, heading(findings), header, rows if width is None else _fit(header, rows, width), sides=sides)


def _row(f: Finding, size: float, shared: Sequence[str], with_holm: bool) -> list[str]:
    a, b = both(f.a, f.b, size)
    word = WORDS[f.verdict] if f.verdict != "x" else ""
    verdict = " ".join(part for part in (f.verdict, word) if part) + (f"  {f.note}" if f.note else "")
    ps = [p_text(f.p), *([p_text(f.holm)] if with_holm else [])]
    point = ",".join(part for part in f.point.split(",") if part not in shared)
    return [f.method + _audit(f), point, a, b, change_text(f.change, size), interval_text(f.change, size), *ps, verdict]


def _audit(f: Finding) -> str:
    """The audit's label beside every method that is not what it claims: such a row is labelled, not ranked as one."""
    labels = dict.fromkeys(label for label in (f.audit_a, f.audit_b) if label)
    return "" if set(labels) <= {"real"} else f" ({' → '.join(labels)})"


def _fit(header: Sequence[str], rows: Sequence[list[str]], width: int) -> list[list[str]]:
    """Cut the verdict's note, then the method, then the point, each no shorter than it must be."""
    rows = [list(row) for row in rows]
    for name, least in (("verdict", 30), ("method", 24), ("point", _NARROWEST), ("method", _NARROWEST), ("verdict", 9)):
        widths = [max(len(title) + HEADING_ROOM, *(len(row[i]) for row in rows)) for i, title in enumerate(header)]
        excess = sum(widths) + GAP * (len(widths) - 1) - width
        if excess <= 0:
            break
        if name not in header:
            continue
        place = header.index(name)
        limit = max(least, widths[place] - excess)
        for row in rows:
            row[place] = shorten(row[place], limit)
    return rows
