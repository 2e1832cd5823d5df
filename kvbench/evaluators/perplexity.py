"""Quality on a continuation that reads the compressed cache: NLL, KL to the baseline, agreement, calibration."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.errors import UsageError
from kvbench.evaluators.base import BASELINE, Evaluator, MethodRecords, Summary, UnitContext, param
from kvbench.metrics import perplexities, recorded
from kvbench.metrics.points import parse_list
from kvbench.spec import RunSpec, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.cache import KVCache
    from kvbench.instruments.protocol import Prompt
    from kvbench.instruments.reshaped import Reshaped
    from kvbench.instruments.session import Session


@dataclass(frozen=True)
class Perplexity(Evaluator):
    """Scores every method on the same tokens, sample by sample, from one prefill.

    With several prompt lengths each prompt is the last tokens before the same continuation, so that all lengths are scored
    on the same tokens. The row's figures are those at the run's context, else at the longest.
    """

    name: ClassVar[str] = "perplexity"
    title: ClassVar[str] = "NLL, perplexity, KL to the baseline, top-1 agreement, ECE on the continuation"
    record: ClassVar[Any] = recorded.Perplexity
    needs_text: ClassVar[bool] = True
    needs_weights: ClassVar[bool] = True
    context: str = param("", "prompt lengths up to the run's --context, tokens, as 512+1024; empty is the run's")

    def __post_init__(self) -> None:
        if self.context:
            parse_list("context", self.context)

    def check(self, spec: RunSpec) -> None:
        """Refuse prompts that are longer than the run's windows, and lengths given twice."""
        lengths = self._lengths(spec)
        if max(lengths) > spec.context:
            raise UsageError(
                f"evaluator 'perplexity': context={max(lengths)} is beyond the run's --context {spec.context}, which windows are cut for",
                hint=f"--context {max(lengths)}",
            )
        if len(set(lengths)) < len(lengths):
            raise UsageError(f"evaluator 'perplexity': context={self.context} names a length twice", hint="name each once")

    def _lengths(self, spec: RunSpec) -> list[int]:
        return parse_list("context", self.context) if self.context else [spec.context]

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        """One a batch of windows and prompt length, lengths innermost."""
        return self.units_of(spec.samples // spec.batch_size * len(self._lengths(spec)), methods, extra=1)

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """Prefill once, run each method's continuation, then score all of them slab by slab."""
        lengths = self._lengths(session.spec)
        batch, at = divmod(unit.index, len(lengths))
        _Sample(unit, session, context, batch, lengths[at]).run()

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        return perplexities.summarise(records, baseline)


class _Sample:
    """One batch of windows through every method, its prompts ``length`` tokens long."""

    def __init__(self, unit: Unit, session: Session, context: UnitContext, batch: int, length: int) -> None:
        self.unit, self.session, self.context, self.batch, self.split = unit, session, context, batch, length
        self.point = "" if length == session.spec.context else f"context={length}"
        self.tokens = session.batch(batch, length)
        self.runner = session.runner
        if self.point:  # what streams holds its budget of this length, not of the run's
            self.runner = replace(self.runner, options=replace(self.runner.options, context=length))
        self.targets = self.tokens[:, self.split :]
        self.hidden: dict[str, Tensor] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.kept: dict[str, Tensor] = {}
        """Of methods that drop tokens, a mark of those that are left, ``[B]``."""
        self.prompt: Prompt | None = None
        self.reshaped: Reshaped | None = None
        self.again: dict[str, Tensor] = {}
        """Hidden states of the first row's first targets where its tokens come in another shape."""

    def run(self) -> None:
        self.context.alone(BASELINE, self._prefill)
        for group in self.session.groups(self.unit.methods, BASELINE, self.targets.numel()):
            for label in group:
                if label not in self.hidden:
                    self.context.alone(label, partial(self._continue, label))
            self._score([label for label in group if label in self.hidden])
            self.hidden = {BASELINE: self.hidden[BASELINE]}
            self.again = {label: states for label, states in self.again.items() if label == BASELINE}

    def _prefill(self) -> None:
        from kvbench.instruments.reshaped import is_walked_again, reshaped

        needs = self.session.needs(self.unit.methods)
        if self.session.spec.protocol == "prefill":
            self.prompt = self.runner.prefill(self.tokens[:, : self.split], needs)
        if is_walked_again(self.batch):
            batches = self.session.spec.samples // len(self.tokens)
            self.reshaped = reshaped(self.runner, self.tokens[:1], self.split, needs, batches)

    def _continue(self, label: str) -> None:
        runner, method = self.runner, self.session.methods[label]
        started = time.perf_counter()
        if self.prompt is None:
            cache = runner.cache(method)
            hidden = runner.streaming(cache, self.tokens, self.targets.shape[1])
            self.facts[label] = {**self._end_bytes(cache), **self._start_bytes(cache)}
            self._mark(label, cache)
        else:
            cache = runner.compress(method, self.prompt)
            self.facts[label] = self._start_bytes(cache)
            self._mark(label, cache)
            hidden = runner.continuation(self.prompt, cache, self.targets)
            self.facts[label] |= self._end_bytes(cache)
        self.facts[label]["seconds"] = time.perf_counter() - started
        again = self.reshaped.hidden(method) if self.reshaped is not None else None
        if again is not None:
            self.again[label] = again
        self.hidden[label] = hidden

    def _mark(self, label: str, cache: KVCache) -> None:
        from kvbench.instruments.kept_tokens import mark

        dropped = self.facts[label]["keys_held"] < self.facts[label]["keys_total"]
        found = mark(cache, len(self.tokens)) if dropped else None
        if found is not None:
            self.kept[label] = found

    def _start_bytes(self, cache: KVCache) -> dict[str, Any]:
        """Bytes where the method has compressed, for one sequence: after the prompt, or at the end of a stream."""
        ledger, rows, seen = cache.ledger(), len(self.tokens), int(cache.get_seq_length())
        geometry = self.runner.geometry
        return {
            "stored_bytes": ledger.stored / rows,
            "allocated_bytes": ledger.allocated / rows,
            "artefact_bytes": sum(ledger.artefacts.values()),
            "baseline_bytes": self.session.baseline_bytes(seen),
            "keys_held": cache.keys_held() / rows,
            "keys_total": seen * geometry.layers * geometry.kv_heads,
        }

    def _end_bytes(self, cache: KVCache) -> dict[str, Any]:
        """Bytes after the continuation, for one sequence."""
        return {
            "stored_bytes_end": cache.ledger().stored / len(self.tokens),
            "baseline_bytes_end": self.session.baseline_bytes(int(cache.get_seq_length())),
        }

    def _score(self, labels: list[str]) -> None:
        from kvbench.instruments.scoring import score

        scores = score(self.runner, {label: self.hidden[label] for label in labels}, self.targets, BASELINE)
        again = self.reshaped.score(self.again, BASELINE) if self.reshaped is not None and BASELINE in self.again else {}
        for label in labels:
            self.context.guard(label, partial(self._record, label, scores[label], again.get(label)))

    def _record(self, label: str, scores: Any, again: Any) -> None:
        from kvbench.instruments.kept_tokens import written
        from kvbench.instruments.reshaped import movement

        rows = len(self.tokens)
        kept = written(self.kept[label]) if label in self.kept else []
        reading = self.targets.shape[1] - (self.prompt is not None)  # the prompt itself predicts the first token
        for row in range(rows):
            data = {**scores.record(row), "tokens_read_compressed": reading, **self.facts[label]}
            data["seconds"] /= rows
            if kept:
                data["kept"] = kept[row]
            if again is not None and row == 0:
                data["rounding"] = movement(scores, again)
            key = str(self.batch * rows + row)
            self.context.record(label, f"{self.point}/{key}" if self.point else key, data)
