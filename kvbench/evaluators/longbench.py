"""LongBench: long documents asked about, summarised and continued, through the compressed cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.errors import CorpusError
from kvbench.evaluators.base import Evaluator, MethodRecords, Stage, Summary, UnitContext, param
from kvbench.figures import Figure
from kvbench.harness.tables import TaskScores, seen
from kvbench.harness.task_scores import SEEN
from kvbench.metrics import recorded
from kvbench.spec import RunSpec, Unit

if TYPE_CHECKING:
    from kvbench.harness.encoding import Encoder
    from kvbench.harness.replies import Reply
    from kvbench.harness.requests import Question
    from kvbench.harness.task_loading import Loaded
    from kvbench.instruments.session import Session

ENGLISH = (
    "narrativeqa+qasper+multifieldqa_en+hotpotqa+2wikimqa+musique+gov_report+qmsum+multi_news+trec+triviaqa+samsum"
    "+passage_count+passage_retrieval_en+lcc+repobench-p"
)
"""The 16 English and code subsets of v1, which papers on cache compression report."""
TITLE = "LongBench through the compressed cache, each subset by its own metric"
SHOWN = 500
"""Characters of an answer that are kept to be looked at; its score is of the whole."""


@dataclass(frozen=True)
class _Kept:
    encoder: Encoder
    questions: Mapping[str, Sequence[Question]]


@dataclass(frozen=True)
class LongBench(Evaluator):
    """Bai et al., "LongBench" (2023) and "LongBench v2" (2024), by lm-evaluation-harness's prompts and metrics.

    Prompts that are too long lose their middle, as in the benchmark. The document is compressed; what is asked of it comes
    after, unless ``question=visible``.
    """

    name: ClassVar[str] = "longbench"
    title: ClassVar[str] = "LongBench v1 (QA, summaries, few-shot, code) and v2 (multiple choice) through the compressed cache"
    record: ClassVar[Any] = recorded.Asked
    needs_weights: ClassVar[bool] = True
    protocols: ClassVar[tuple[str, ...]] = ("prefill",)
    subsets: str = param(ENGLISH, "v1 subsets, or the harness's names of v2 (longbench2_academic_single), joined by +")
    samples: int = param(10, "questions of each, spread evenly over its documents", least=1)
    max_length: int = param(0, "longest prompt, tokens, cut in its middle; 0 is what the answer leaves of the model's positions", least=0)
    question: str = param("hidden", "whether compression sees what is asked of the document: hidden, visible or both", among=SEEN)
    max_gen_toks: int = param(0, "longest answer, tokens; 0 is each subset's own limit (32 to 512)", least=0)
    missing: str = param("refuse", "subsets whose data cannot be had: refuse the run, or skip them", among=("refuse", "skip"))

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self._subsets
        if not all(names) or len(set(names)) < len(names):
            raise ValueError(f"subsets={self.subsets}; name each once and join them by +, for example subsets=qasper+gov_report")
        if self.max_length == 1:
            raise ValueError(f"max_length={self.max_length}; it must be 0 or at least 2")

    @property
    def _subsets(self) -> list[str]:
        return [name.strip() for name in self.subsets.split("+")]

    def check(self, spec: RunSpec) -> None:
        """Refuse unknown subsets, broken lines of mirror files, and metrics whose packages are not installed."""
        from kvbench.harness.longbench_tasks import check_subsets, lacks
        from kvbench.harness.task_loading import check_data

        names = check_subsets(self._subsets, metrics=self.missing == "refuse")
        check_data([name for name in names if not lacks(name)], spec.corpus.data_dir)

    def longest(self, spec: RunSpec) -> int:
        return self.max_length

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        """One a question, so that every subset is seen once before one is seen twice."""
        return self.units_of(self.samples * len(self._subsets), methods)

    def prepare(self, session: Session, stage: Stage) -> Mapping[str, Any]:
        """Read the documents and write all prompts."""
        from kvbench.harness.longbench_tasks import MiddleEncoder, harness_name, lacks
        from kvbench.harness.requests import questions_of

        encoder = MiddleEncoder(session.loaded.tokenizer, session.loaded.model.config, self.max_length)
        loaded = self._load(session, stage)
        questions: dict[str, list[Question]] = {harness_name(subset): [] for subset in self._subsets}
        for leaf in loaded.leaves.values():
            questions[leaf.of] += questions_of(leaf)
        session.kept[self.name] = _Kept(encoder, questions)
        facts, lacking = loaded.facts(), {name: reason for name in questions if (reason := lacks(name))}
        left_out = {**facts.get("left_out", {}), **lacking}
        return {**facts, "left_out": left_out, "question": self.question, "prompts": self._lengths(questions, encoder, stage)}

    def _load(self, session: Session, stage: Stage) -> Loaded:
        from kvbench.harness.longbench_tasks import at_hand as what_to_try
        from kvbench.harness.longbench_tasks import harness_name, lacks
        from kvbench.harness.task_loading import at_hand, load_tasks
        from kvbench.texts.corpora import mirror_folder

        spec, names = session.spec, [name for subset in self._subsets if not lacks(name := harness_name(subset))]
        try:
            return load_tasks(
                names, spec.corpus.data_dir, questions=self.samples, seed=spec.seed, stage=stage,
                missing="skip" if self.missing == "skip" else "refuse",
            )  # fmt: skip
        except CorpusError as error:
            have = at_hand(names, mirror_folder(spec.corpus.data_dir))
            raise CorpusError(error.message, hint=what_to_try(self._subsets, have)) from error

    def _lengths(self, questions: Mapping[str, Sequence[Question]], encoder: Encoder, stage: Stage) -> dict[str, dict[str, int]]:
        """Subset → questions, tokens of its longest prompt as it is asked, and how many prompts lost their middle."""
        from kvbench.harness.replies import encoded

        found = {}
        for done, (name, of) in enumerate(questions.items()):
            stage("writing prompts", done, len(questions))
            written = [prompt for question in of for prompt in encoded(encoder, question, most=self.max_gen_toks)]
            if written:
                longest, cut = max(len(prompt.ids) for prompt in written), sum(prompt.cut > 0 for prompt in written)
                found[_shown(name)] = {"asked": len(of), "longest": longest, "shortened": cut}
        stage("writing prompts", len(questions), len(questions))
        return found

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """Ask all methods one question."""
        from kvbench.harness.longbench_tasks import harness_name
        from kvbench.harness.replies import ask

        kept: _Kept = session.kept[self.name]
        place, subset = divmod(unit.index, len(self._subsets))
        for question in kept.questions[harness_name(self._subsets[subset])][place : place + 1]:
            record = partial(_record, question, context)
            ask(session, kept.encoder, question, unit.methods, context, record, seen=self.question, most=self.max_gen_toks)

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        scores = _scores(records, baseline)
        return {label: _headed(scores.summary(label)) for label, of in records.items() if of}

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        scores = _scores(records, baseline)
        return [*scores.main(_remarks(facts)), *scores.gaps()]


def _scores(records: Mapping[str, MethodRecords], baseline: str | None) -> TaskScores:
    return TaskScores(records, baseline, LongBench.name, TITLE, axis="subset")


def _shown(name: str) -> str:
    from kvbench.harness.longbench_tasks import subset_name

    return subset_name(name)


def _record(question: Question, context: UnitContext, label: str, end: str, said: Reply) -> None:
    from kvbench.harness.longbench_tasks import own_metrics
    from kvbench.harness.requests import rules, score

    metrics = own_metrics(score(question, said.answers))
    facts = {name: value[:SHOWN] if isinstance(value, str) else value for name, value in said.facts.items()}
    data = {"column": _shown(question.leaf.name), "metrics": metrics, **rules(question.leaf, metrics), **facts}
    context.record(label, question.key + end, data)


def _headed(found: Summary) -> Summary:
    """One figure for the table of all evaluators: the mean over subsets, as papers give it."""
    mean = found.fields.get("longbench_accuracy")
    return replace(found, fields={**found.fields, "headline": {} if mean is None else {"longbench": mean}})


def _remarks(facts: Mapping[str, Any]) -> list[str]:
    """What a reader must know of how the questions were asked."""
    prompts = facts.get("prompts", {})
    shortened = sum(of["shortened"] for of in prompts.values())
    said = [f"longest prompt {max(of['longest'] for of in prompts.values()):,} tokens"] if prompts else []
    if shortened:
        said.append(f"{shortened} of {sum(of['asked'] for of in prompts.values())} prompts lost their middle to fit, as in the benchmark")
    return said + seen(facts, "document") + [f"left out: {_shown(name)} ({reason})" for name, reason in facts.get("left_out", {}).items()]
