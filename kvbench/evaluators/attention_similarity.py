"""Where queries look, with the whole prompt and with what a method keeps of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.evaluators.base import BASELINE, Better, Evaluator, Measured, MethodRecords, Summary, UnitContext, param
from kvbench.figures import Figure, Grid, Table
from kvbench.formats import NONE, fixed
from kvbench.metrics import recorded
from kvbench.metrics.points import batches
from kvbench.spec import RunSpec, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.instruments.protocol import Prompt
    from kvbench.instruments.session import Session

METRICS: Mapping[str, tuple[str, Better]] = {
    "cosine": ("map cos", "higher"),
    "tv": ("map TV", "lower"),
    "output_cosine": ("output cos", "higher"),
}
"""Name in the records → heading, and which direction is an improvement; ``attention_`` goes before the metric's name."""


@dataclass(frozen=True)
class AttentionSimilarity(Evaluator):
    """Cosine and total variation between full and compressed attention maps, and the cosine of attention's output, by layer.

    The queries are those of the continuation's first tokens, as the uncompressed model has them: they are what reads the
    cache. Each looks at the prompt alone, right after it was compressed; the continuation's own tokens are in neither map. The full
    map is the softmax over all prompt tokens with the keys that the baseline stores. The compressed one is the softmax over
    what the method stores, each token at its place in the prompt, evicted ones 0; the tokens of a merged entry share its
    attention evenly. Where a method cannot say which tokens it reads (a press that changes keys, a plug-in's own layer),
    attention's outputs alone are compared: ``compared`` in its records is then ``outputs``, else ``maps``.
    """

    name: ClassVar[str] = "attention_similarity"
    title: ClassVar[str] = "cosine and total variation of full and compressed attention maps, cosine of outputs, by layer"
    record: ClassVar[Any] = recorded.Attended
    needs_text: ClassVar[bool] = True
    needs_weights: ClassVar[bool] = True
    protocols: ClassVar[tuple[str, ...]] = ("prefill",)
    samples: int = param(0, "windows looked at, the run's first; 0 is all of them", least=0)
    queries: int = param(16, "first tokens of the continuation whose queries look; at most the continuation", least=1)

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        """One a batch of windows."""
        return self.units_of(batches(spec, self.samples), methods, extra=2)

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """One batch of prompts, and the queries that follow them, through every method."""
        batch = _Batch(unit, session, context, self.queries)
        context.alone(BASELINE, partial(batch.prefill, unit.methods))
        for label in unit.methods:
            context.alone(label, partial(batch.method, label))

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        return {label: _summary(of) for label, of in records.items()}

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        found = {label: list(of.values()) for label, of in records.items() if of}
        return [_by_method(found), *(_heat(label, of) for label, of in found.items() if label != baseline)] if found else []


class _Batch:
    """One batch of prompts and the queries that follow them."""

    def __init__(self, unit: Unit, session: Session, context: UnitContext, queries: int) -> None:
        self.session, self.context = session, context
        self.tokens = session.batch(unit.index)
        self.first = unit.index * session.spec.batch_size
        self.count = min(queries, session.spec.continuation)
        self.prompt: Prompt | None = None
        self.queries: list[Tensor] = []

    def prefill(self, labels: Sequence[str]) -> None:
        """The prompt once, and once more with what follows: under a causal mask the prompt's own keys are the same."""
        from kvbench.caches.needs import Needs

        runner, split = self.session.runner, self.session.spec.context
        longer = runner.prefill(self.tokens[:, : split + self.count], Needs(window=self.count))
        self.queries = [view.observed.window for view in longer.views if view.observed.window is not None]
        self.prompt = runner.prefill(self.tokens[:, :split], self.session.needs(labels))

    def method(self, label: str) -> None:
        from kvbench.instruments.fidelity import attention

        if self.prompt is None:
            raise RuntimeError("the prompt is prefilled before it is compressed")
        cache = self.session.runner.compress(self.session.methods[label], self.prompt)
        for row, data in enumerate(attention(cache, self.prompt, self.queries)):
            self.context.record(label, str(self.first + row), data | {"queries": self.count})


def _layers(records: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """Means over windows, by layer; empty where the method has no such figure."""
    known = [record[metric] for record in records if metric in record]
    return [fmean(column) for column in zip(*known, strict=True)]


def _summary(records: MethodRecords) -> Summary:
    fields: dict[str, Any] = {}
    measured = []
    for metric, (_, better) in METRICS.items():
        samples = {key: fmean(data[metric]) for key, data in records.items() if metric in data}
        if samples:
            fields[f"attention_{metric}"] = fmean([*samples.values()])
            measured.append(
                Measured(f"attention_{metric}", fields[f"attention_{metric}"], "1", "paired", better, samples=samples, scoring="mean")
            )
    if records:
        fields["attention_compared"] = next(iter(records.values()))["compared"]
    return Summary(fields, measured)


def _by_method(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    headings = ["method", "compared"]
    for heading, _ in METRICS.values():
        headings += [heading, "worst layer"]
    queries = next(iter(found.values()))[0]["queries"]
    notes = [f"mean over layers, query heads and the continuation's first {queries} queries, over the prompt's tokens alone"]
    if any(of[0]["compared"] == "outputs" for of in found.values()):
        notes.append("outputs: the method does not say which tokens it reads, so that there is no map of it")
    rows = [[label, of[0]["compared"], *_cells(of)] for label, of in found.items()]
    return Table("methods", "Attention over the stored prompt against attention over the whole", headings, rows, left=2, notes=notes)


def _cells(records: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = []
    for metric, (_, better) in METRICS.items():
        layers = _layers(records, metric)
        if not layers:
            cells += [NONE, NONE]
            continue
        worst = (max if better == "lower" else min)(range(len(layers)), key=layers.__getitem__)
        cells += [fixed(fmean(layers), 4), f"{fixed(layers[worst], 4)} (layer {worst})"]
    return cells


def _heat(label: str, records: Sequence[Mapping[str, Any]]) -> Grid:
    """By layer; total variation as what is left of 1, so that high is good throughout."""
    columns = [(heading if better == "higher" else f"1 − {heading}", metric, better) for metric, (heading, better) in METRICS.items()]
    values = {heading: [v if better == "higher" else 1 - v for v in _layers(records, metric)] for heading, metric, better in columns}
    known = {heading: layers for heading, layers in values.items() if layers}
    rows = list(zip(*known.values(), strict=True))
    title = f"How near attention with {label} is to full attention"
    return Grid("attention", title, label, [str(i) for i in range(len(rows))], [*known], rows, row_name="layer", column_name="measure")
