"""RULER: retrieval, tracing and aggregation in made texts of a given length, through the compressed cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.evaluators.base import Evaluator, MethodRecords, Stage, Summary, UnitContext, param
from kvbench.figures import Figure, Grid, Table
from kvbench.formats import NONE
from kvbench.harness.tables import TaskScores, seen
from kvbench.harness.task_scores import SEEN, VISIBLE
from kvbench.metrics import recorded
from kvbench.metrics.accuracy import means
from kvbench.metrics.points import parse_list
from kvbench.spec import RunSpec, Unit

if TYPE_CHECKING:
    from kvbench.harness.replies import Reply
    from kvbench.harness.ruler_tasks import Cell, Prepared
    from kvbench.instruments.session import Session

TASKS = (
    "niah_single_1+niah_single_2+niah_single_3+niah_multikey_1+niah_multikey_2+niah_multikey_3+niah_multivalue+niah_multiquery+vt+cwe+fwe"
)
"""All but the two whose questions and documents have to be fetched, qa_squad and qa_hotpot."""
LLAMA2_AT_4K = 0.856
"""What RULER calls satisfactory: Llama-2-7B-chat's score at 4,096 tokens (Hsieh et al. 2024; the figure is in the benchmark's README)."""
TITLE = "RULER through the compressed cache: mean over tasks, by length in tokens"


@dataclass(frozen=True)
class Ruler(Evaluator):
    """Hsieh et al. (2024), "RULER: What's the Real Context Size of Your Long-Context Language Models?".

    lm-evaluation-harness makes the texts, to measure with the model's tokenizer, and scores the answers: the fraction of
    the wanted strings that an answer holds. The text is compressed; the question comes after, unless ``question=visible``.
    """

    name: ClassVar[str] = "ruler"
    title: ClassVar[str] = "RULER: needles, variable tracking, word counts by length through the compressed cache; effective context"
    record: ClassVar[Any] = recorded.Ruled
    needs_weights: ClassVar[bool] = True
    protocols: ClassVar[tuple[str, ...]] = ("prefill",)
    tasks: str = param(TASKS, "RULER's tasks by the harness's names, joined by +; also qa_squad, qa_hotpot")
    lengths: str = param("", "prompt and answer, tokens, as 1024+4096; empty is the run's --context")
    samples: int = param(5, "prompts a task and length", least=1)
    question: str = param("hidden", "whether compression sees the question behind the text: hidden, visible or both", among=SEEN)
    filler: str = param(
        "auto",
        "text around needles: essays (of the mirror, else the hub), reference (ships with Python), auto",
        among=("auto", "essays", "reference"),
    )
    max_gen_toks: int = param(0, "longest answer, tokens; 0 is each task's own limit (30 to 128)", least=0)
    threshold: float = param(LLAMA2_AT_4K, "effective context: the longest length whose mean score is at least this", within="(0, 1]")
    missing: str = param("refuse", "tasks whose data cannot be had: refuse the run, or skip them", among=("refuse", "skip"))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, of in (("tasks", self._tasks), ("lengths", parse_list("lengths", self.lengths) if self.lengths else [])):
            if not all(of) or len(set(of)) < len(of):
                raise ValueError(f"{name}={getattr(self, name)}; name each once and join them by +")

    @property
    def _tasks(self) -> list[str]:
        return [name.strip() for name in self.tasks.split("+")]

    def _lengths(self, spec: RunSpec) -> list[int]:
        return sorted(parse_list("lengths", self.lengths)) if self.lengths else [spec.context]

    def _cells(self, spec: RunSpec) -> list[tuple[str, int]]:
        return [(task, length) for length in self._lengths(spec) for task in self._tasks]

    def check(self, spec: RunSpec) -> None:
        """Refuse unknown tasks."""
        from kvbench.harness.ruler_tasks import check_tasks

        check_tasks(self._tasks)

    def longest(self, spec: RunSpec) -> int:
        return max(self._lengths(spec))

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        """One a sample; every task at every length is seen once before one is seen twice."""
        return self.units_of(self.samples * len(self._cells(spec)), methods)

    def prepare(self, session: Session, stage: Stage) -> Mapping[str, Any]:
        """Make all samples."""
        from kvbench.harness.ruler_tasks import prepare

        prepared = prepare(
            session, self._cells(session.spec), stage,
            samples=self.samples, filler=self.filler, most=self.max_gen_toks, skip=self.missing == "skip",
        )  # fmt: skip
        session.kept[self.name] = prepared
        return {**prepared.facts, "question": self.question, "threshold": self.threshold}

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """Ask all methods for one sample."""
        from kvbench.harness.replies import ask

        prepared: Prepared = session.kept[self.name]
        cells = self._cells(session.spec)
        place, cell = divmod(unit.index, len(cells))
        for sample in prepared.cells.get(cells[cell], [])[place : place + 1]:
            record = partial(_record, sample, context)
            ask(session, prepared.encoder, sample.question, unit.methods, context, record, seen=self.question, most=self.max_gen_toks)

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        scores = _scores(records, baseline, "length")
        return {label: self._summary(scores, label) for label, of in records.items() if of}

    def _summary(self, scores: TaskScores, label: str) -> Summary:
        found = scores.summary(label)
        by_length = {column: of["accuracy"] for column, of in found.fields[self.name].items()}
        mean = found.fields.get("ruler_accuracy")
        fields = {
            **found.fields,
            "headline": {} if mean is None else {"ruler": mean},
            "ruler_effective_context": effective_context(by_length, self.threshold),
        }
        return replace(found, fields=fields)

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        by_length, by_task = (_scores(records, baseline, axis) for axis in ("length", "task"))
        shown: list[Figure] = [self._with_effective(of, by_length) for of in by_length.main(_remarks(facts))]
        by_task.name, by_task.title = "ruler_tasks", "RULER through the compressed cache: mean over lengths, by task"
        tasks = by_task.main([]) if self.samples > 1 or "+" in self.lengths else []  # of one sample each, the grids say it all
        grids = [grid for label in by_task.records if (grid := _grid(label, records[label], facts)) is not None]
        return [*shown, *tasks, *by_length.gaps(), *grids]

    def _with_effective(self, of: Figure, scores: TaskScores) -> Figure:
        """The table by length, with each method's effective context."""
        if not isinstance(of, Table):
            return of
        found = {label: self._summary(scores, label).fields["ruler_effective_context"] for label in scores.records if scores.records[label]}
        rows = [[*row, NONE if found[row[0]] is None else f"{found[row[0]]:,}"] for row in of.rows]
        note = f"effective: the longest length whose mean score is at least {100 * self.threshold:.1f} %"
        if self.threshold == LLAMA2_AT_4K:
            note += ", Llama-2-7B-chat's at 4,096 tokens, as Hsieh et al. (2024) define it (there over 13 tasks)"
        return replace(of, headings=[*of.headings, "effective"], rows=rows, notes=[*of.notes, note])


def effective_context(scores: Mapping[str, float], threshold: float) -> int | None:
    """The longest length with a score of at least ``threshold``; ``None`` if there is none (Hsieh et al. 2024)."""
    return max((int(length) for length, score in scores.items() if score >= threshold), default=None)


def _scores(records: Mapping[str, MethodRecords], baseline: str | None, axis: str) -> TaskScores:
    """Records in columns by ``length`` or by ``task``."""
    columns = {
        label: {key: {**data, "column": str(data[axis])} for key, data in sorted(of.items(), key=lambda item: item[1]["length"])}
        for label, of in records.items()
    }
    return TaskScores(columns, baseline, Ruler.name, TITLE, axis)


def _record(cell: Cell, context: UnitContext, label: str, end: str, said: Reply) -> None:
    from kvbench.harness.ruler_tasks import score_of

    data = {"task": cell.task, "length": cell.length, "metrics": {"score": score_of(cell.question, said.answers)}}
    context.record(label, cell.key + end, {**data, "wanted": list(cell.question.document["outputs"]), **said.facts})


def _grid(label: str, records: MethodRecords, facts: Mapping[str, Any]) -> Grid | None:
    """One method's tasks × lengths, with the question hidden unless it never was."""
    hidden = {key: of for key, of in records.items() if not key.endswith(VISIBLE)} or records
    tasks, lengths = (list(dict.fromkeys(of[name] for of in hidden.values())) for name in ("task", "length"))
    if not tasks:
        return None
    found = means(((of["task"], of["length"]), of["metrics"]["score"]) for of in hidden.values())
    lengths = sorted(lengths)
    values = [[found.get((task, length)) for length in lengths] for task in tasks]
    title = "RULER: fraction of the wanted strings found"
    return Grid("ruler", title, label, tasks, [f"{length:,}" for length in lengths], values, "task", "tokens")


def _remarks(facts: Mapping[str, Any]) -> list[str]:
    """What a reader must know of how the samples were made."""
    said = [f"filler: {facts['filler']}; sentences by {facts['sentences']}"] if facts.get("filler") else []
    said += seen(facts, "text")
    left_out: dict[str, list[str]] = {}
    for name, reason in facts.get("left_out", {}).items():
        left_out.setdefault(reason, []).append(name)
    return said + [f"left out: {', '.join(names)} ({reason})" for reason, names in left_out.items()]
