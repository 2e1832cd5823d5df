"""How far free-running text drifts from the baseline's: every method writes on from the same prompts, greedily.

Teacher forcing (``perplexity``) puts a method back on the baseline's path after each token; here its own errors feed it.
A prompt is a window's context, compressed exactly as ``perplexity`` compresses it, and the window's next token, which is
fed through the compressed cache: so the first generated token, too, has read what the method stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.evaluators.base import BASELINE, Evaluator, Measured, MethodRecords, Stage, Summary, UnitContext, param
from kvbench.figures import Figure, Table
from kvbench.formats import NONE, fixed, shorten, signed, with_interval
from kvbench.metrics import recorded
from kvbench.metrics.accuracy import Accuracy, accuracies, cells, measured, table
from kvbench.metrics.likeness import GRAM, Likeness, visible
from kvbench.metrics.stats import mean_interval
from kvbench.spec import RunSpec, Unit

if TYPE_CHECKING:
    from kvbench.instruments.answers import Answer
    from kvbench.instruments.session import Session

FIRST_MARK = 8
"""The first count of tokens after which it is asked who still writes the baseline's text; each further one is twice it."""
TAIL = 48
"""Tokens of the prompt's end that a record keeps as text."""
WIDTH = 60
"""Characters of each text that the table of worst samples shows."""
LEAD = 16
"""Of those, the ones before the texts part."""


@dataclass(frozen=True)
class Drift(Evaluator):
    """Greedy generation of all methods together, a forward a token, compared with the baseline's token by token."""

    name: ClassVar[str] = "drift"
    title: ClassVar[str] = "free-running greedy text against the baseline's: first divergence, agreement, length, repetition"
    record: ClassVar[Any] = recorded.Written
    needs_text: ClassVar[bool] = True
    needs_weights: ClassVar[bool] = True
    protocols: ClassVar[tuple[str, ...]] = ("prefill",)
    prompts: int = param(4, "prompts: the contexts of the run's first windows, at most --samples of them", least=1)
    tokens: int = param(64, "longest text, tokens", least=1)
    short: int = param(8, "first tokens that are matched as a short answer, tokens", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.short > self.tokens:
            raise ValueError(f"short={self.short} is beyond tokens={self.tokens}; write tokens={self.short} or more")

    def longest(self, spec: RunSpec) -> int:
        """The context, the token that is fed after it, and the text; the last token written is not read."""
        return spec.context + self.tokens

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        return self.units_of(min(self.prompts, spec.samples), methods, extra=1)

    def prepare(self, session: Session, stage: Stage) -> Mapping[str, Any]:
        """How many prompts there are of those asked for."""
        return {"prompts": min(self.prompts, session.spec.samples), "asked": self.prompts}

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """One prompt through every method."""
        from kvbench.instruments.answers import Ask, generate

        spec = session.spec
        window = session.batch(unit.index // spec.batch_size)[unit.index % spec.batch_size].tolist()
        ask = Ask(window[: spec.context], window[spec.context : spec.context + 1])

        answers = generate(session, ask, unit.methods, context.together(), max_tokens=self.tokens)
        tail = _decoded(session, [*ask.context, *ask.question][-TAIL:])
        for label, answer in answers.items():
            data = self._data(session, answer) | ({"prompt_end": tail} if label == BASELINE else {})
            context.guard(label, partial(context.record, label, str(unit.index), data))

    def _data(self, session: Session, answer: Answer) -> dict[str, Any]:
        return {
            "tokens": answer.tokens,
            "text": _decoded(session, answer.tokens),
            "short_text": _decoded(session, answer.tokens[: self.short]),
            "ended": answer.ended,
            "stored_bytes": answer.stored_bytes,
            "baseline_bytes": answer.baseline_bytes,
        }

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        reference = records.get(baseline, {}) if baseline else {}
        return {label: self._summary(of, {} if label == baseline else reference) for label, of in records.items() if of}

    def _summary(self, records: MethodRecords, reference: MethodRecords) -> Summary:
        """A method's own figures, and those against the baseline on the prompts that both have written on from."""
        own = Likeness(records, reference)
        fields: dict[str, Any] = {"drift_prompts": len(records), **_bytes(records)}
        found: list[Measured] = []
        where = f"tokens={self.tokens}"
        if own.keys:
            scores = {"exact_match": own.matches(), "agreement": own.agreements(), "prefix": own.prefixes()}
            points = {"exact_match": f"short={self.short}"}
            found = [measured(f"drift_{name}", points.get(name, where), of, graded=name != "exact_match") for name, of in scores.items()]
            shift = mean_interval(list(own.shifts().values()))
            found.append(
                Measured("drift_length_shift", shift.value, "tokens", "paired", "neither", where, shift.low, shift.high, own.shifts())
            )
            fields |= {"drift_median_divergence": own.median_divergence(), "drift_same_after": own.survival(marks(self.tokens))}
        if repeated := own.repetitions():
            one = measured("drift_repetition", where, repeated, graded=True)
            found.append(replace(one, better="lower"))
        fields |= {m.metric: m.value for m in found}
        return Summary(fields, found)

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        """Who still writes the baseline's text after how many tokens; how alike texts are; each method's worst."""
        reference = records.get(baseline, {}) if baseline else {}
        texts = {label: Likeness(of, reference) for label, of in records.items() if label != baseline}
        texts = {label: text for label, text in texts.items() if text.keys}
        if not texts:
            return []
        few = []
        if facts.get("prompts", 0) < facts.get("asked", 0):
            few = [f"{facts['prompts']} of {facts['asked']} prompts: the run has no more samples (--samples)"]
        return [self._divergence(texts, few), self._likeness(records, texts, baseline), _worst(texts)]

    def _divergence(self, texts: Mapping[str, Likeness], few: Sequence[str]) -> Table:
        at = marks(self.tokens)
        alive = {k: accuracies({label: text.same_after(k) for label, text in texts.items()}, None) for k in at}
        rows = [
            [label, _token(text.median_divergence()), _token(text.earliest()), *(cells(alive[k][label])[0] for k in at), _shift(text)]
            for label, text in texts.items()
        ]
        headings = ["method", "median", "earliest", *(f"same after {k} %" for k in at), "length shift"]
        counts = sorted({len(text.keys) for text in texts.values()})
        notes = [
            f"prompts: {'–'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}; greedy, at most {self.tokens} tokens",
            *few,
            "median, earliest: index of the first token that differs from the baseline's, from 0; "
            f"{NONE}: half of the texts or more (for the earliest, all) are the same to the end",
            "same after k: texts whose first k tokens are the baseline's, or that are the same to an earlier end; "
            "±: half of Wilson's 95 % interval",
            "length shift: tokens more than the baseline's, mean [Student's t 95 % interval]",
        ]
        return Table("divergence", "Free-running text: where it leaves the baseline's", headings, rows, notes=notes)

    def _likeness(self, records: Mapping[str, MethodRecords], texts: Mapping[str, Likeness], baseline: str | None) -> Table:
        repeated = {label: Likeness(of, {}).repetitions() for label, of in records.items()}
        groups: dict[str, dict[str, Accuracy]] = {
            f"first {self.short} match": accuracies({label: text.matches() for label, text in texts.items()}, None),
            "agreement": accuracies({label: text.agreements() for label, text in texts.items()}, None, graded=True),
            "repetition": accuracies(repeated, baseline, graded=True),
        }
        found = table("likeness", "Free-running text: how like the baseline's, and how repetitive", groups, list(records), what="prompts")
        said = [
            f"first {self.short} match: the first {self.short} tokens are the same text but for case, white space and Unicode forms",
            "agreement: positions with the baseline's token, of the longer text",
            f"repetition: seq-rep-{GRAM} = 1 − distinct {GRAM}-grams ÷ {GRAM}-grams of tokens (Welleck et al. 2020)",
        ]
        return Table(found.name, found.title, found.headings, found.rows, notes=[*said, *found.notes])


def marks(tokens: int) -> list[int]:
    """8, 16, 32 … below ``tokens``, and ``tokens``."""
    doubled = [FIRST_MARK << i for i in range(tokens.bit_length()) if FIRST_MARK << i < tokens]
    return [*doubled, tokens]


def _decoded(session: Session, tokens: Sequence[int]) -> str:
    tokenizer: Any = session.loaded.tokenizer  # there is one: the corpus was read with it
    text: str = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    return text


def _bytes(records: MethodRecords) -> dict[str, float]:
    """Of the compressed context, one sequence, mean over prompts."""
    stored, whole = (math.fsum(of[name] for of in records.values()) / len(records) for name in ("stored_bytes", "baseline_bytes"))
    return {"stored_bytes": stored, "baseline_bytes": whole, "compression_factor": whole / stored, "compression_ratio": 1 - stored / whole}


def _token(at: float | None) -> str:
    return fixed(at, 0 if at is None or float(at).is_integer() else 1)


def _shift(text: Likeness) -> str:
    found = mean_interval(list(text.shifts().values()))
    return with_interval(signed(found.value, 1), found.low, found.high, 1)


def _worst(texts: Mapping[str, Likeness]) -> Table:
    """Each method's text that parts earliest, the texts from shortly before they part."""
    rows, never = [], []
    for label, text in texts.items():
        parted = [(at, key) for key, at in text.divergences().items() if at is not None]
        if not parted:
            never.append(label)
            continue
        at, key = min(parted, key=lambda one: (one[0], int(one[1])))
        own, base = text.records[key]["text"], text.reference[key]["text"]
        rows.append([label, _end(text.reference[key].get("prompt_end", "")), *_around(base, own), key, str(at)])
    notes = ["the prompt with the earliest divergence, a method each; texts begin shortly before they part, whole ones are in the records"]
    notes += [f"the same as the baseline's to the end: {', '.join(never)}"] if never else []
    headings = ["method", "prompt's end", "baseline's text", "method's text", "prompt", "diverges at"]
    return Table("worst", "Free-running text: worst samples", headings, rows, left=4, notes=notes)


def _end(text: str) -> str:
    shown = visible(text)
    return shown if len(shown) <= WIDTH else "…" + shown[1 - WIDTH :]


def _around(base: str, own: str) -> tuple[str, str]:
    """Both from shortly before they part, on one line each."""
    parted = next((i for i, (a, b) in enumerate(zip(base, own, strict=False)) if a != b), min(len(base), len(own)))
    start = max(0, parted - LEAD)
    lead = "…" if start else ""
    first, second = (shorten(lead + visible(text[start:]), WIDTH) for text in (base, own))
    return first or "(nothing)", second or "(nothing)"
