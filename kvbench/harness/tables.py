"""What the harness's tasks say of each method: accuracies with intervals, paired differences, the gap of hidden questions. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvbench.figures import Figure, Table
from kvbench.formats import NONE, fixed, signed, with_interval
from kvbench.harness.task_scores import Columns, Metric, columns, main_metric, total_bytes
from kvbench.metrics.accuracy import MARK, Accuracy, accuracies, cells, corrected, measured, table
from kvbench.metrics.measured import Better, Measured, MethodRecords, Summary
from kvbench.metrics.paired import ALPHA, Paired, Scoring, kind_of, paired, shared
from kvbench.metrics.stats import holm, mean_interval

TITLE = "Tasks of lm-evaluation-harness through the compressed cache"


class TaskScores:
    """All records as columns (a task, or a group that pools its tasks' questions) of metrics.

    Args:
        name: What its tables and fields are called by. title: Of its main table. axis: What a column is.
    """

    def __init__(
        self, records: Mapping[str, MethodRecords], baseline: str | None, name: str = "tasks", title: str = TITLE, axis: str = "task"
    ) -> None:
        self.records, self.baseline = records, baseline
        self.name, self.title, self.axis = name, title, axis
        self.hidden: dict[str, Columns] = {label: columns(of) for label, of in records.items() if of}
        self.visible: dict[str, Columns] = {label: columns(of, visible=True) for label, of in records.items() if of}
        seen = [*self.hidden.values(), *self.visible.values()]
        names = list(dict.fromkeys(column for of in seen for column in of))
        self.metrics = {column: main_metric(of[column] for of in seen if column in of) for column in names}

    @property
    def scored(self) -> dict[str, Columns]:
        """What the main table shows: with the question hidden, unless it was never."""
        return self.hidden if any(self.hidden.values()) else self.visible

    def accuracies(self, column: str, name: str) -> dict[str, Accuracy]:
        """label → accuracy by one metric of one column."""
        return accuracies({label: metric.values for label, metric in self._every(column, name).items()}, self.baseline)

    def main(self, remarks: Sequence[str]) -> list[Figure]:
        groups = {f"{column} {_title(name)}": self.accuracies(column, name) for column, name in self.metrics.items() if name}
        if not groups:
            return []
        shown = table(self.name, self.title, groups, list(self.records))
        return [replace(shown, notes=[*shown.notes, *remarks])]

    def gaps(self) -> list[Figure]:
        """What hiding the question costs each method: hidden − visible on the same questions."""
        groups = {column: self._gap(column, name) for column, name in self.metrics.items() if name}
        found = corrected({column: of for column, of in groups.items() if of})
        if not found:
            return []
        headings = [text for column in found for text in (f"{column} visible %", f"{column} hidden %", "gap")]
        rows = [[label, *(cell for of in found.values() for cell in self._gap_cells(of.get(label)))] for label in self.records]
        tests = sum(of.p is not None for labels in found.values() for of in labels.values())
        notes = [
            "gap: accuracy with the question hidden from compression − with it in sight, percentage points [paired 95 % interval]",
            f"{MARK}: p < {ALPHA}, exact McNemar test or paired bootstrap, corrected by Holm (1979) over the {tests} tests of this table",
        ]
        return [Table(f"{self.name}_question", "What hiding the question from compression costs", ["method", *headings], rows, notes=notes)]

    def _gap(self, column: str, name: str) -> dict[str, Accuracy]:
        """label → accuracy with the question hidden, against the same method's with it visible."""
        found = {}
        for label in self.records:
            visible, hidden = (of.get(label, {}).get(column, {}).get(name) for of in (self.visible, self.hidden))
            if visible is not None and hidden is not None:
                both = {key: value for key, value in hidden.values.items() if key in visible.values}
                if both:
                    found[label] = accuracies({"visible": visible.values, "hidden": both}, "visible")["hidden"]
        return found

    @staticmethod
    def _gap_cells(found: Accuracy | None) -> tuple[str, str, str]:
        if found is None or found.difference is None:
            return NONE, NONE, NONE
        return fixed(100 * (found.value - found.difference), 1), fixed(100 * found.value, 1), cells(found)[1]

    def others(self) -> list[Figure]:
        """Metrics beside those of the main table: further accuracies, and figures of other kinds."""
        rest = [(column, name) for column, main in self.metrics.items() for name in self._names(column) if name != main]
        shares = {f"{column} {_title(name)}": self.accuracies(column, name) for column, name in rest if self._is_share(column, name)}
        more = [(column, name) for column, name in rest if not self._is_share(column, name)]
        title = "Further metrics of the same answers"
        found: list[Figure] = [table(f"{self.name}_other", title, shares, list(self.records))] if shares else []
        return [*found, self._figures(more)] if more else found

    def _names(self, column: str) -> list[str]:
        return list(dict.fromkeys(name for of in self.scored.values() for name in of.get(column, {})))

    def _every(self, column: str, name: str) -> dict[str, Metric]:
        return {label: of[column][name] for label, of in self.scored.items() if name in of.get(column, {})}

    def _is_share(self, column: str, name: str) -> bool:
        return all(metric.is_share for metric in self._every(column, name).values())

    def _figures(self, wanted: Sequence[tuple[str, str]]) -> Table:
        """Metrics that are no accuracies: their value, and the paired difference where they are means."""
        headings, by_label, tests = ["method"], {label: [label] for label in self.records}, {}
        for column, name in wanted:
            headings += [f"{column} {_title(name)}", "Δ"]
            every = self._every(column, name)
            base = every.get(self.baseline or "")
            for label in self.records:
                metric = every.get(label)
                test = _paired(base, metric) if metric is not None and label != self.baseline else None
                by_label[label] += [NONE if metric is None else fixed(metric.value(), 3), NONE]
                if test is not None:
                    tests[label, len(by_label[label]) - 1] = test
        adjusted = holm([test.p for test in tests.values() if test.p is not None])
        marks = dict(zip((place for place, test in tests.items() if test.p is not None), adjusted, strict=True))
        for (label, place), test in tests.items():
            by_label[label][place] = _change(test) + (MARK if marks.get((label, place), 1.0) < ALPHA else "")
        names = ", ".join(dict.fromkeys(test.test for test in tests.values() if test.test)) or "none"
        notes = [
            f"Δ: method − baseline, mean over the questions that both have [95 % interval of the same test: {names}]",
            f"{MARK}: p < {ALPHA}, corrected by Holm (1979) over the {len(marks)} tests of this table",
            "without Δ: the harness's own aggregate of all answers, which is no mean over questions",
        ]
        return Table(f"{self.name}_figures", "Metrics that are no accuracies", headings, list(by_label.values()), notes=notes)

    def summary(self, label: str) -> Summary:
        """Each task's accuracies with their differences, their mean over tasks, and how far contexts were compressed."""
        shown = self.scored.get(label, {})
        by_task = {column: self._task(label, column, of) for column, of in shown.items()}
        mains = {column: of["accuracy"] for column, of in by_task.items() if "accuracy" in of}
        fields: dict[str, Any] = {self.name: by_task, "headline": mains}
        if mains:
            fields[f"{self.name}_accuracy"] = sum(mains.values()) / len(mains)
        stored, before = total_bytes(self.records[label].values())
        if stored:
            fields |= {f"{self.name}_compression_factor": before / stored, f"{self.name}_compression_ratio": 1 - stored / before}
        measures = [
            *_measured(self.hidden.get(label, {}), self.axis, ""),
            *_measured(self.visible.get(label, {}), self.axis, ",question=visible"),
        ]
        return Summary(fields, measures)

    def _task(self, label: str, column: str, metrics: Mapping[str, Metric]) -> dict[str, Any]:
        main = self.metrics[column]
        found: dict[str, Any] = {"metrics": {name: metric.value() for name, metric in metrics.items()}}
        if main in metrics:
            of = self.accuracies(column, str(main))[label]
            found |= {"metric": main, "accuracy": of.value, "low": of.low, "high": of.high, "questions": of.n}
            gap = self._gap(column, str(main)).get(label)
            if of.difference is not None:
                found |= {"difference": of.difference, "p": of.p}
                found |= {"difference_low": of.difference_low, "difference_high": of.difference_high}
            if gap is not None:
                found |= {"gap": gap.difference, "gap_low": gap.difference_low, "gap_high": gap.difference_high}
        return found


def _measured(found: Columns, axis: str, where: str) -> list[Measured]:
    """Every metric of a method for ``kvbench compare``."""
    every = []
    for column, metrics in found.items():
        for name, metric in metrics.items():
            point = f"{axis}={column}{where}"
            if metric.is_share:
                every.append(measured(name, point, metric.values))
            elif metric.values:
                spread = mean_interval(list(metric.values.values()))
                every.append(
                    Measured(name, spread.value, "1", "paired", _better(metric), point, spread.low, spread.high, dict(metric.values))
                )
    return every


def _title(name: str) -> str:
    return Metric(name).title


def _paired(base: Metric | None, own: Metric) -> Paired | None:
    """By the rule that ``compare`` has for what :func:`_measured` gives it."""
    before, after = shared(base.values if base else {}, own.values)
    if base is None or not before:
        return None
    scoring: Scoring = "answers" if base.is_share or own.is_share else ""
    return paired(before, after, kind_of(scoring, _better(own), base.values.values(), own.values.values()))


def _better(metric: Metric) -> Better:
    return "lower" if metric.is_lower_better else "higher"


def _change(test: Paired) -> str:
    return with_interval(signed(test.difference, 3), test.low, test.high, 3)


def seen(facts: Mapping[str, Any], what: str) -> list[str]:
    """Whether compression saw the question behind ``what``, if that was said."""
    if facts.get("question") == "visible":
        return ["compression saw the question"]
    return [f"the {what} was compressed before the question came"] if facts.get("question") else []


def remarks(facts: Mapping[str, Any]) -> list[str]:
    """What a reader must know of how the questions were asked."""
    said = []
    shots = {of["of"]: of["fewshot"] for of in facts.get("tasks", {}).values()}
    if shots:
        said.append("examples before each question: " + ", ".join(f"{name} {count}" for name, count in shots.items()))
    hidden, asked = facts.get("with_context", {}), facts.get("asked", {})
    if asked and facts.get("question") != "visible":
        apart = [name for name, count in hidden.items() if count]
        whole = [name for name in asked if name not in apart]
        if apart:
            said.append(f"question hidden from compression: {', '.join(apart)}")
        if whole:
            said.append(f"no context before the question, so all of the prompt but its last token is compressed: {', '.join(whole)}")
    if facts.get("max_gen_toks"):
        said.append(f"answers were cut off at {facts['max_gen_toks']} tokens")
    if facts.get("greedy_instead_of_sampled"):
        said.append(f"greedy here, sampled in the harness: {', '.join(facts['greedy_instead_of_sampled'])}")
    said += [f"left out: {name} ({reason})" for name, reason in facts.get("left_out", {}).items()]
    return said
