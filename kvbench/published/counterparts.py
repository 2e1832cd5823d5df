"""Which of a row's scores a published accuracy or score stands beside: by the task's words, whatever the evaluator is."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kvbench.compare.sides import MethodResult
from kvbench.harness.task_scores import PREFERRED
from kvbench.metrics.measured import Measured
from kvbench.published import Entry

AVERAGE = "average"
"""Part of a task's name for the mean over a suite's tasks (``longbench/average``)."""


def words(text: str) -> set[str]:
    """``longbench/multi_news`` → longbench, multi, news."""
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def length_of(point: str) -> int | None:
    """Tokens that a point names."""
    named = re.search(r"(?:context|length|tokens)=(\d+)", point)
    return int(named[1]) if named else None


def scored(entry: Entry, row: MethodResult) -> Measured | None:
    """The score that holds every word of the task, with the fewest other words, by the metric that stands for a task."""
    task = words(entry.task)
    fitting = [m for m in _scores(row) if task and task <= words(f"{m.metric} {m.point}")]
    return min(fitting, key=lambda m: _preference(entry, m), default=None)


def suite(entry: Entry, row: MethodResult) -> list[Measured]:
    """One score of each task of the suite whose average ``entry`` is, at its length if there are several; else nothing."""
    name, _, part = entry.task.partition("/")
    if part != AVERAGE:
        return []
    fitting = [m for m in _scores(row) if words(name) <= words(f"{m.metric} {m.point}")]
    if any(length_of(m.point) == entry.context for m in fitting):
        fitting = [m for m in fitting if length_of(m.point) == entry.context]
    best: dict[str, Measured] = {}
    for one in sorted(fitting, key=lambda m: _preference(entry, m)):
        best.setdefault(_task(one), one)
    return list(best.values())


def _scores(row: MethodResult) -> Iterable[Measured]:
    return (m for m in row.measured.values() if m.unit == "1" and m.better == "higher" and m.value is not None and 0.0 <= m.value <= 1.0)


def _task(score: Measured) -> str:
    """What tells tasks apart: the point's task, or the metric where no point names one."""
    named = re.search(r"task=([^,]+)", score.point)
    return named[1] if named else score.metric


def _preference(entry: Entry, score: Measured) -> tuple[bool, int, int]:
    """Questions seen or hidden as in the entry, few other words, the harness's main metric."""
    base = score.metric.partition(",")[0]
    order = PREFERRED.index(base) if base in PREFERRED else len(PREFERRED)
    return ("visible" in words(score.point)) != (entry.question == "visible"), len(words(score.point) - words(entry.task)), order
