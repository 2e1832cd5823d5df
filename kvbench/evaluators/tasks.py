"""Tasks of lm-evaluation-harness through the compressed cache: accuracies, and what hiding the question from compression costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.evaluators.base import Evaluator, MethodRecords, Stage, Summary, UnitContext, param
from kvbench.figures import Figure
from kvbench.harness.tables import TaskScores, remarks
from kvbench.harness.task_scores import SEEN
from kvbench.metrics import recorded
from kvbench.spec import RunSpec, Unit

if TYPE_CHECKING:
    from kvbench.harness.encoding import Encoder
    from kvbench.harness.replies import Reply
    from kvbench.harness.requests import Question
    from kvbench.harness.task_loading import Loaded
    from kvbench.instruments.session import Session

IN_A_UNIT = 8
"""Questions of a unit: what a kill can cost."""
SHARDS = 64
"""Units a task is dealt out to where all its questions are asked, since a plan does not know how many there are."""


@dataclass
class _Kept:
    """What the units of a run share: questions by the name they came with."""

    encoder: Encoder
    loaded: Loaded
    questions: Mapping[str, Sequence[Question]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tasks(Evaluator):
    """EleutherAI's lm-evaluation-harness is the source of prompts, options, filters and metrics; kvbench is its model.

    A prompt's context (its few-shot examples, a passage that is asked about) is prefilled once and compressed by every
    method; the question and the answer read the compressed cache. Options that share a prompt share its prefill.
    """

    name: ClassVar[str] = "tasks"
    title: ClassVar[str] = "lm-evaluation-harness tasks through the compressed cache: accuracy, against the baseline"
    record: ClassVar[Any] = recorded.Asked
    needs_weights: ClassVar[bool] = True
    protocols: ClassVar[tuple[str, ...]] = ("prefill",)
    names: str = param("gsm8k+mmlu+arc_challenge+arc_easy+hellaswag+winogrande+piqa", "tasks, groups or tags of the harness, joined by +")
    questions: int = param(50, "questions of each, spread evenly over its subtasks; 0 is all", least=0)
    fewshot: int = param(-1, "examples before each question; -1 is the task's own number", least=-1)
    question: str = param("hidden", "whether compression sees the question behind a context: hidden, visible or both", among=SEEN)
    max_gen_toks: int = param(0, "longest generated answer, tokens; 0 is the task's own limit", least=0)
    missing: str = param("refuse", "tasks whose data cannot be had: refuse the run, or skip them", among=("refuse", "skip"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(self._names):
            raise ValueError(f"names={self.names}; join names by +, for example names=piqa+mmlu")

    @property
    def _names(self) -> list[str]:
        return [name.strip() for name in self.names.split("+")]

    @property
    def _examples(self) -> int | None:
        return None if self.fewshot < 0 else self.fewshot

    @property
    def _parts(self) -> int:
        """Units of each task."""
        return -(-self.questions // IN_A_UNIT) if self.questions else SHARDS

    def check(self, spec: RunSpec) -> None:
        """Unknown names, tasks that cannot be run, and broken lines of mirror files are refused."""
        from kvbench.harness.task_loading import check_data

        check_data(self._names, spec.corpus.data_dir, fewshot=self._examples)

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        return self.units_of(len(self._names) * self._parts, methods)

    def prepare(self, session: Session, stage: Stage) -> Mapping[str, Any]:
        """Load the tasks and write all prompts; nothing is asked yet."""
        from kvbench.harness.encoding import Encoder
        from kvbench.harness.requests import questions_of
        from kvbench.harness.task_loading import load_tasks

        spec, encoder = session.spec, Encoder(session.loaded.tokenizer, session.loaded.model.config)
        loaded = load_tasks(
            self._names, spec.corpus.data_dir, questions=self.questions, seed=spec.seed, stage=stage,
            tokenizer=session.loaded.tokenizer, fewshot=self._examples, missing="skip" if self.missing == "skip" else "refuse",
        )  # fmt: skip
        questions: dict[str, list[Question]] = {name: [] for name in self._names}
        for done, leaf in enumerate(loaded.leaves.values()):
            stage("writing prompts", done, len(loaded.leaves))
            questions[leaf.of] += questions_of(leaf)
        stage("writing prompts", len(loaded.leaves), len(loaded.leaves))
        session.kept[self.name] = _Kept(encoder, loaded, questions)
        return loaded.facts() | self._facts(questions, encoder)

    def _facts(self, questions: Mapping[str, Sequence[Question]], encoder: Encoder) -> dict[str, Any]:
        """What becomes of the prompts; raises where an answer leaves no room for its prompt."""
        from kvbench.harness.requests import samples_greedily_instead

        firsts = {q.leaf.name: q for of in questions.values() for q in of}
        for question in firsts.values():
            if question.generates:
                encoder.generation(question, self.max_gen_toks)
        asked = [q for of in questions.values() for q in of]
        if getattr(encoder.tokenizer, "may_exceed", False):  # which is found out by writing every prompt
            for question in asked:
                encoder.write(question, self.max_gen_toks)
        return {
            "question": self.question,
            "max_gen_toks": self.max_gen_toks,
            "with_context": {name: sum(q.ends[0] is not None for q in of) for name, of in questions.items() if of},
            "asked": {name: len(of) for name, of in questions.items() if of},
            "greedy_instead_of_sampled": sorted({q.leaf.name for q in asked if samples_greedily_instead(q)}),
        }

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """Ask some questions of one task, each of all methods."""
        from kvbench.harness.replies import ask

        kept: _Kept = session.kept[self.name]
        questions = kept.questions[self._names[unit.index // self._parts]]
        part = unit.index % self._parts
        mine = questions[part * IN_A_UNIT : (part + 1) * IN_A_UNIT] if self.questions else questions[part :: self._parts]
        for question in mine:
            can_hide = any(end is not None for end in question.ends)
            seen = self.question if can_hide or self.question != "both" else "hidden"
            record = partial(_record, question, kept, context)
            ask(session, kept.encoder, question, unit.methods, context, record, seen=seen, most=self.max_gen_toks)

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        found = TaskScores(records, baseline)
        return {label: found.summary(label) for label, of in records.items() if of}

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        found = TaskScores(records, baseline)
        return [*found.main(remarks(facts)), *found.gaps(), *found.others()]


def _record(question: Question, kept: _Kept, context: UnitContext, label: str, end: str, said: Reply) -> None:
    from kvbench.harness.requests import rules, score

    leaf, metrics = question.leaf, score(question, said.answers)
    column = leaf.of if leaf.of in kept.loaded.pooled else leaf.name
    data = {"column": column, "task": leaf.name, "metrics": metrics, **rules(leaf, metrics), **said.facts}
    context.record(label, question.key + end, data)
