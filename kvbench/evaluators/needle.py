"""Needles in a haystack: what a compressed cache still finds, by how long the text is and how deep the needle lies.

The haystack is compressed before the question is asked, as a cache is used that is to serve more than one question; with
``question=visible`` the question stands in what is compressed, where methods that look at a prompt's end can make use of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.errors import UsageError
from kvbench.evaluators.base import Evaluator, MethodRecords, Stage, Summary, UnitContext, param
from kvbench.figures import Figure
from kvbench.metrics import recorded
from kvbench.metrics.points import parse_list
from kvbench.needles.fillers import check_filler, open_filler, read_filler
from kvbench.needles.questions import KINDS, VALUES, Cell
from kvbench.needles.tables import Shown
from kvbench.spec import RunSpec, Unit
from kvbench.spec.parameters import must_be

if TYPE_CHECKING:
    from kvbench.instruments.session import Session
    from kvbench.needles.prompts import Prompts

SHORTEST, STEPS = 256, 5
"""Lengths, where none are named: so many even steps from this many tokens to the run's context."""


@dataclass(frozen=True)
class Needle(Evaluator):
    """Every length with every depth; one prefill a prompt serves all methods, which answer together, a forward a token."""

    name: ClassVar[str] = "needle"
    title: ClassVar[str] = "needles in a haystack: length × depth, single, multi-key, multi-value; effective context"
    record: ClassVar[Any] = recorded.Found
    needs_weights: ClassVar[bool] = True
    protocols: ClassVar[tuple[str, ...]] = ("prefill",)
    lengths: str = param("", "prompt and answer, tokens, as 1024+4096; empty is five even steps from 256 to the run's --context")
    depths: str = param("5", "how many even steps from 0 to 100 %, or the depths in %, as 0+50+100 (one alone as 50%)")
    kinds: str = param("single", "single, multi_key (others are hidden too), multi_value (several of one name), joined by +")
    needles: int = param(4, "needles of the kinds that have several", within="[2, 99]")
    values: str = param("numbers", "what is hidden: numbers (of 7 digits) or words (joined in pairs)", among=VALUES)
    samples: int = param(1, "prompts a kind, length and depth, each with its own haystack and needles", least=1)
    filler: str = param(
        "language_reference", "a corpus, 'corpus' (the run's own), 'haystack' (essays of the mirror), or a .txt/.jsonl file"
    )
    question: str = param("hidden", "hidden: asked after compression; visible: compressed with the haystack", among=("hidden", "visible"))
    chat: bool = param(True, "use the model's chat template, where it has one")
    max_tokens: int = param(16, "longest answer, tokens a value that is asked for", least=1)
    threshold: float = param(0.85, "effective context: fraction of the baseline's score at the shortest length, all kinds", within="(0, 1]")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_depths(self.depths)
        kinds, lengths = self.kinds.split("+"), parse_list("lengths", self.lengths) if self.lengths else []
        for kind in kinds:
            must_be("kinds", kind, KINDS)
        for name, of in (("kinds", kinds), ("lengths", lengths)):
            if len(set(of)) < len(of):
                raise ValueError(f"{name}={getattr(self, name)} names one twice")

    def check(self, spec: RunSpec) -> None:
        """Refuse a filler that is not there or no text."""
        check_filler(self.filler, spec)

    def longest(self, spec: RunSpec) -> int:
        return max(self._lengths(spec))

    def _lengths(self, spec: RunSpec) -> list[int]:
        if self.lengths:
            return sorted(parse_list("lengths", self.lengths))
        span = max(0, spec.context - SHORTEST)
        return sorted({min(SHORTEST, spec.context) + round(span * i / (STEPS - 1)) for i in range(STEPS)})

    def _cells(self, spec: RunSpec) -> list[Cell]:
        """In order of samples, so that every length and depth is seen once before one is seen twice."""
        return [
            Cell(kind, length, depth, sample)
            for sample in range(self.samples)
            for kind in self.kinds.split("+")
            for length in self._lengths(spec)
            for depth in parse_depths(self.depths)
        ]

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        return self.units_of(len(self._cells(spec)), methods, extra=1)

    def prepare(self, session: Session, stage: Stage) -> Mapping[str, Any]:
        """Read the filler, and see that the shortest prompts hold their needles."""
        spec, lengths = session.spec, self._lengths(session.spec)
        prompts = self._prompts(session)
        for kind in self.kinds.split("+"):
            prompts.check_room(Cell(kind, lengths[0], 0.0, 0))
        stage(f"reading {self.filler}", 0, 0)
        text = open_filler(self.filler, spec)
        filler = read_filler(text, lengths[-1], prompts.counts)
        if getattr(session.loaded.tokenizer, "may_exceed", False):  # which is found out by writing every prompt
            for cell in self._cells(spec):
                prompts.make(cell, filler)
        session.kept[self.name] = (prompts, filler)
        return {
            "filler": text.source,
            "content_hash": text.digest(),
            "filler_tokens": filler.tokens,
            "lengths": lengths,
            "depths": parse_depths(self.depths),
            "chat": prompts.uses_chat,
        }

    def _prompts(self, session: Session) -> Prompts:
        from kvbench.needles.prompts import Prompts, around

        tokenizer = session.loaded.tokenizer
        if tokenizer is None:
            raise UsageError("evaluator 'needle' needs a tokenizer, and this model has none here", hint="leave needle out of --evals")
        frame = around(tokenizer) if self.chat else ("", "")
        return Prompts(tokenizer, session.spec.seed, self.needles, self.values, self.question == "hidden", self.max_tokens, *frame)

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """One prompt through every method."""
        from kvbench.instruments.answers import generate

        prompts, filler = session.kept[self.name]
        cell = self._cells(session.spec)[unit.index]
        made = prompts.make(cell, filler)

        answers = generate(session, made.ask, unit.methods, context.together(), max_tokens=made.room, stop=prompts.ends_line)
        for label, answer in answers.items():
            context.guard(label, partial(context.record, label, cell.key, prompts.record(made, answer)))

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        return Shown(records, baseline, self.threshold).summaries()

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        shown = Shown(records, baseline, self.threshold)
        return [*shown.tables(self._said(facts)), *shown.grids(parse_depths(self.depths), facts.get("lengths"))]

    def _said(self, facts: Mapping[str, Any]) -> list[str]:
        how = "after compression" if self.question == "hidden" else "within what is compressed"
        filler = facts.get("filler", self.filler)
        return [f"filler {filler}; the question is asked {how}; lengths are of prompt and answer, tokens"]


def parse_depths(text: str) -> list[float]:
    """``5`` → [0, 25, 50, 75, 100]; ``0+50`` → [0, 50]; ``50%`` → [50].

    Raises:
        ValueError: no depths in 0–100 %, or one twice.
    """
    if text.strip().isdecimal():
        count = int(text)
        if not 1 <= count <= 100:
            raise ValueError(f"depths={text}; 1 to 100 of them, or the depths in % as 0+50+100")
        return [50.0] if count == 1 else [round(100 * i / (count - 1), 1) for i in range(count)]
    try:
        found = [float(entry.strip().removesuffix("%")) for entry in text.split("+")]
    except ValueError:
        raise ValueError(f"depths={text}; write how many, as 5, or the depths in %, as 0+50+100") from None
    if not all(0 <= depth <= 100 for depth in found) or len(set(found)) < len(found):
        raise ValueError(f"depths={text}; each must be from 0 to 100 %, and none twice")
    return sorted(found)
