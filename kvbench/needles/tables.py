"""What needle records show: summaries, tables, and a heat map of depth by length for each method and kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import fmean
from typing import Any

from kvbench.figures import Grid, Table
from kvbench.formats import NONE
from kvbench.metrics.accuracy import Accuracy, accuracies, means, measured, table
from kvbench.metrics.measured import HEADLINE, Measured, MethodRecords, Summary
from kvbench.needles.questions import Cell, effective_context

Pick = Callable[[Cell], bool]


class Shown:
    """Needle records, read.

    Args:
        records: label → cell key → data. baseline: Label of the uncompressed row, ``None`` if it is not there.
        threshold: Of :func:`kvbench.needles.questions.effective_context`.
    """

    def __init__(self, records: Mapping[str, MethodRecords], baseline: str | None, threshold: float) -> None:
        self.records = {label: of for label, of in records.items() if of}
        self.baseline, self.threshold = baseline, threshold

    @cached_property
    def cells(self) -> dict[str, Cell]:
        return {key: Cell.of(key) for of in self.records.values() for key in of}

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(cell.kind for cell in self.cells.values()))

    @property
    def lengths(self) -> list[int]:
        return sorted({cell.length for cell in self.cells.values()})

    def scores(self, label: str, name: str, pick: Pick = lambda _: True) -> dict[str, float]:
        """Cell key → score."""
        return {key: data[name] for key, data in self.records.get(label, {}).items() if pick(self.cells[key])}

    def effective(self, label: str) -> int | None:
        """Effective context, tokens; 0 is less than the shortest length, ``None`` cannot be said."""
        base = list(self._by_length(self.baseline or "").values())
        return effective_context(self._by_length(label), base[0], self.threshold) if base else None

    def _by_length(self, label: str) -> dict[int, float]:
        """Length → mean graded score over depths, kinds and samples, shortest first."""
        found = means((self.cells[key].length, value) for key, value in self.scores(label, "graded").items())
        return dict(sorted(found.items()))

    # Summaries

    def summaries(self) -> dict[str, Summary]:
        return {label: self._summary(label) for label in self.records}

    def _summary(self, label: str) -> Summary:
        exact, graded = (measured(f"needle_{name}", "", self.scores(label, name)) for name in ("exact", "graded"))
        stored, whole = (math.fsum(of[name] for of in self.records[label].values()) for name in ("stored_bytes", "baseline_bytes"))
        fields: dict[str, Any] = {
            "needle_prompts": len(self.records[label]),
            **{f"{m.metric}{end}": value for m in (exact, graded) for end, value in (("", m.value), ("_low", m.low), ("_high", m.high))},
            "needle_similarity": fmean(self.scores(label, "similarity").values()),
            "needle_by_length": {str(length): value for length, value in self._by_length(label).items()},
            "needle_effective_context": self.effective(label),
            "compression_factor": whole / stored,
            "compression_ratio": 1 - stored / whole,
            HEADLINE: {"needle": exact.value},
        }
        return Summary(fields, [exact, graded, *self._points(label)])

    def _points(self, label: str) -> list[Measured]:
        """Graded scores of each length and exact ones of each kind, where there are several."""
        found = []
        if len(self.lengths) > 1:
            found += [("needle_graded", f"length={n}", self.scores(label, "graded", _of_length(n))) for n in self.lengths]
        if len(self.kinds) > 1:
            found += [("needle_exact", f"kind={kind}", self.scores(label, "exact", _of_kind(kind))) for kind in self.kinds]
        return [measured(*one) for one in found if one[2]]

    # Figures

    def tables(self, said: Sequence[str]) -> list[Table]:
        """Scores with differences from the baseline, and graded scores by length with the effective context."""
        return [self._scores_table(said), self._lengths_table(said)] if self.records else []

    def _scores_table(self, said: Sequence[str]) -> Table:
        groups = {"exact": self._accuracies("exact", self.baseline)}
        if len(self.kinds) > 1:
            groups |= {f"{kind} exact": self._accuracies("exact", self.baseline, _of_kind(kind)) for kind in self.kinds}
        groups |= {name: self._accuracies(name, None) for name in ("graded", "similarity")}
        found = table("scores", "Needles found", groups, list(self.records), what="prompts")
        meant = [
            "exact: the first values named are the hidden ones; graded: hidden values named anywhere, of all "
            "(RULER's string_match_all, whole values); similarity: Levenshtein's, to the nearest value named",
        ]
        return replace(found, notes=[*said, *meant, *found.notes])

    def _lengths_table(self, said: Sequence[str]) -> Table:
        groups = {f"{length:,}": self._accuracies("graded", None, _of_length(length)) for length in self.lengths}
        found = table("lengths", "Needles found by length, graded", groups, list(self.records), what="prompts")
        rows = [[*row, self._written(self.effective(row[0]))] for row in found.rows]
        note = (
            f"effective context: the longest length at which, as at all shorter ones, the score is at least {self.threshold:g} of the "
            "baseline's at the shortest (after NoLiMa, Modarressi et al. 2025), tokens"
        )
        return replace(found, headings=[*found.headings, "effective context"], rows=rows, notes=[*said, note, *found.notes])

    def _accuracies(self, name: str, baseline: str | None, pick: Pick = lambda _: True) -> dict[str, Accuracy]:
        return accuracies({label: self.scores(label, name, pick) for label in self.records}, baseline, graded=name == "similarity")

    def _written(self, effective: int | None) -> str:
        return NONE if effective is None else f"{effective:,}" if effective else f"< {self.lengths[0]:,}"

    def grids(self, depths: Sequence[float], lengths: Sequence[int] | None) -> list[Grid]:
        """One a method and kind: the mean graded score of each depth (rows) and length (columns)."""
        columns = list(lengths or self.lengths)
        return [self._grid(label, kind, depths, columns) for kind in self.kinds for label in self.records]

    def _grid(self, label: str, kind: str, depths: Sequence[float], lengths: Sequence[int]) -> Grid:
        scores = self.scores(label, "graded", _of_kind(kind))
        found = means(((self.cells[key].depth, self.cells[key].length), value) for key, value in scores.items())
        values = [[found.get((depth, length)) for length in lengths] for depth in depths]
        return Grid(
            kind,
            f"Needle, {kind.replace('_', '-')}: graded score",
            label,
            [f"{depth:g} %" for depth in depths],
            [f"{length:,}" for length in lengths],
            values,
            row_name="depth",
            column_name="tokens",
            notes=["a needle stands at the boundary between sentences that is nearest to its depth"],
        )


def _of_length(length: int) -> Pick:
    return lambda cell: cell.length == length


def _of_kind(kind: str) -> Pick:
    return lambda cell: cell.kind == kind
