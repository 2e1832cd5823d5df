"""Keys and values as each method's store gives them back, against what it was given."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.evaluators.base import BASELINE, Evaluator, Measured, MethodRecords, Stage, Summary, UnitContext, param
from kvbench.figures import Figure
from kvbench.metrics import loss_tables as loss_figures
from kvbench.metrics import losses, recorded
from kvbench.metrics.losses import SIDES, Over, Side
from kvbench.metrics.points import batches
from kvbench.spec import RunSpec, Unit

if TYPE_CHECKING:
    from kvbench.instruments.ladders import Rung
    from kvbench.instruments.protocol import Prompt, Runner
    from kvbench.instruments.session import Session

RUNG = "ladder"
"""First part of the keys of records that are no method's: one setting of a sweep, kept with the baseline's."""
BROKEN = "failed"
"""Field of the record of a setting that could not be tried: why."""


@dataclass(frozen=True)
class Reconstruction(Evaluator):
    """MSE, cosine and relative error of K and V by layer and KV head, through the method's own store-and-read.

    The prompt of each window is prefilled once; every method stores it and is read back at once. The reference is what
    the baseline stores: the model's keys (RoPE applied) and values in the cache's dtype. Tokens are compared where they
    stand in the prompt. One that is evicted, or masked, is missing: figures over all tokens count it as zeros (cosine 0), figures
    over held tokens leave it out. Merged tokens (AsymKV) read as the entry that they are part of, key and position
    included, since attention over an entry counted n times is attention over n such tokens. Removed key channels read as
    zeros, low-rank tokens as expanded.

    ``sweep`` turns ranks and bits of one side and the other, on the same prompts, and says up to which compression of the
    side each cosine is kept.
    """

    name: ClassVar[str] = "reconstruction"
    title: ClassVar[str] = "MSE, cosine and relative error of K and V by layer and head; ranks and bits at which they fail"
    record: ClassVar[Any] = recorded.Reconstructed
    needs_text: ClassVar[bool] = True
    needs_weights: ClassVar[bool] = True
    protocols: ClassVar[tuple[str, ...]] = ("prefill",)
    samples: int = param(0, "windows looked at, the run's first; 0 is all of them", least=0)
    sweep: bool = param(True, "try ranks and bits of K and of V, and say where each fails")

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        """One a batch of windows."""
        return self.units_of(batches(spec, self.samples), methods, extra=1 + self.sweep)

    def prepare(self, session: Session, stage: Stage) -> Mapping[str, Any]:
        """Calibrate what the sweep's methods read."""
        if not self.sweep:
            return {}
        from kvbench.instruments.ladders import rungs

        found = list(rungs(session.spec, session.loaded.shape))
        session.kept[self.name] = session.calibrated({r.method.label: r.method for r in found}, stage), found
        return {RUNG: {r.ladder.name: {"title": r.ladder.title, "sides": r.ladder.sides} for r in found}}

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """Store one batch of prompts by every method, then by every setting of the sweep."""
        batch = _Batch(unit, session, context)
        context.alone(BASELINE, partial(batch.prefill, unit.methods))
        for label in unit.methods:
            context.alone(label, partial(batch.method, label))
        if self.sweep and BASELINE in unit.methods:
            context.guard(BASELINE, partial(batch.sweep, *session.kept[self.name]))

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        return {label: _summary(_samples(of)) for label, of in records.items()}

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        found = {label: list(_samples(of).values()) for label, of in records.items()}
        rungs = [data for key, data in records.get(BASELINE, {}).items() if key.startswith(f"{RUNG}/")]
        tried = [data for data in rungs if BROKEN not in data]
        broken = {str(data["method"]): str(data[BROKEN]) for data in rungs if BROKEN in data}
        return loss_figures.figures(found, tried, facts.get(RUNG, {}), baseline, broken)


class _Batch:
    """One batch of prompts."""

    def __init__(self, unit: Unit, session: Session, context: UnitContext) -> None:
        self.session, self.context = session, context
        self.tokens = session.batch(unit.index)[:, : session.spec.context]
        self.first = unit.index * session.spec.batch_size
        self.prompt: Prompt | None = None

    def prefill(self, labels: Sequence[str]) -> None:
        self.prompt = self.session.runner.prefill(self.tokens, self.session.needs(labels))

    def method(self, label: str) -> None:
        for key, data in self._stored(self.session.runner, self.session.methods[label]).items():
            self.context.record(label, key, data)

    def sweep(self, runner: Runner, rungs: Sequence[Rung]) -> None:
        """Every setting; one that breaks is no method's failure, and its record says why it has no figures."""
        for rung in rungs:
            name = f"{RUNG}/{rung.ladder.name}={rung.step}"
            facts = {"ladder": rung.ladder.name, "step": rung.step, "method": rung.method.label}
            try:
                stored = self._stored(runner, rung.method)
            except Exception as error:
                traceback.print_exc()
                self.context.record(BASELINE, f"{name}/{BROKEN}", facts | {BROKEN: f"{type(error).__name__}: {error}"})
                continue
            for key, data in stored.items():
                self.context.record(BASELINE, f"{name}/{key}", facts | _over_heads(data))

    def _stored(self, runner: Runner, method: Any) -> dict[str, dict[str, Any]]:
        """What the prompt reads as after ``method`` stored it, by window."""
        from kvbench.instruments.fidelity import bytes_held, reconstruction

        if self.prompt is None:
            raise RuntimeError("the prompt is prefilled before it is stored")
        cache, rows = runner.compress(method, self.prompt), len(self.tokens)
        held = bytes_held(cache, rows) | {"baseline_bytes": self.session.baseline_bytes(self.tokens.shape[1])}
        try:
            read = reconstruction(cache, self.prompt)
        except NotImplementedError as error:
            read = [{"unread": str(error)}] * rows
        return {str(self.first + row): held | data for row, data in enumerate(read)}


def _over_heads(data: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose heads are added up, which is all that a sweep shows."""
    heads = len(data["held"][0])

    def added(rows: Sequence[Sequence[float]]) -> list[list[float]]:
        return [[sum(row)] for row in rows]

    sides: dict[str, Any] = {side: {name: added(rows) for name, rows in data[side].items()} for side in SIDES}
    return {**data, **sides, "held": added(data["held"]), "tokens": data["tokens"] * heads}


def _samples(records: MethodRecords) -> dict[str, Mapping[str, Any]]:
    """The method's own records, by window."""
    return {key: records[key] for key in sorted((k for k in records if k.isdigit()), key=int)}


# Summaries ----------------------------------------------------------------------------------


def _summary(records: Mapping[str, Mapping[str, Any]]) -> Summary:
    read = {key: data for key, data in records.items() if "k" in data}
    if not read:
        return Summary()
    fields: dict[str, Any] = {"reconstruction_held": losses.held_share(list(read.values()))}
    measured = []
    for side in SIDES:
        for over in ("all", "held"):
            fields |= _fields(list(read.values()), side, over)
        name = f"reconstruction_{side}_cosine"
        each = {key: losses.means([data], side, "all") for key, data in read.items()}
        samples = {key: found.loss.cosine for key, found in each.items() if found is not None}
        measured.append(Measured(name, fields[name], "1", "paired", "higher", samples=samples, scoring="mean"))
    return Summary(fields, measured)


def _fields(records: Sequence[Mapping[str, Any]], side: Side, over: Over) -> dict[str, Any]:
    found, behind = losses.means(records, side, over), "" if over == "all" else "_held"
    if found is None:
        return {}
    stem = f"reconstruction_{side}"
    values = {"cosine": found.loss.cosine, "relative_error": found.loss.relative, "mse": found.loss.mse}
    return {f"{stem}_{name}{behind}": value for name, value in values.items()} | {f"{stem}_worst_layer{behind}": found.worst_layer}
