"""Time to the first token and per token, every method in turn within each repeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.evaluators.base import Better, Evaluator, Measured, MethodRecords, Summary, UnitContext, param
from kvbench.evaluators.points import Point, parse_list, points
from kvbench.spec import RunSpec
from kvbench.state import Unit
from kvbench.stats import median

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.cache import KVCache
    from kvbench.caches.needs import Needs
    from kvbench.engine.protocol import Prompt
    from kvbench.engine.session import Session

READ_PATH = "reference"
"""How stored bytes were read while the clock ran: dequantised in plain PyTorch."""
SETTLING_STEPS = 1
"""Decode steps before the clock starts, after every compression."""


@dataclass(frozen=True)
class Speed(Evaluator):
    """TTFT = prefill (with the statistics the method asks for) + compress; TPOT over a greedy decode.

    A repeat goes through all methods before the next begins, so that a drift of the machine meets all of
    them alike. The first ``warmup`` repeats are recorded as such and not counted.
    """

    name: ClassVar[str] = "speed"
    title: ClassVar[str] = "TTFT (prefill + compress), TPOT, tokens/s by batch and context"
    batch: str = param("1", "sequences at once; several as 1+8+32")
    context: str = param("", "prompt lengths, tokens, as 2048+32768; empty is the run's --context")
    steps: int = param(16, "decode steps timed")
    repeats: int = param(5, "timed repeats; below 4, compare can show no difference")
    warmup: int = param(1, "repeats before them, not counted")

    def __post_init__(self) -> None:
        parse_list("batch", self.batch)
        if self.context:
            parse_list("context", self.context)
        if min(self.steps, self.repeats) < 1 or self.warmup < 0:
            raise ValueError(f"steps={self.steps}, repeats={self.repeats}, warmup={self.warmup}; steps and repeats ≥ 1, warmup ≥ 0")

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        rounds = self.warmup + self.repeats
        count = len(points(spec, self.batch, self.context)) * rounds
        return [Unit(f"{self.name}/{i}", self.name, i, tuple(methods), steps=len(methods) + 1) for i in range(count)]

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """One repeat at one point, over all methods; those that ask for the same statistics share a timed prefill."""
        rounds = self.warmup + self.repeats
        point = points(session.spec, self.batch, self.context)[unit.index // rounds]
        repeat = unit.index % rounds
        stopwatch = _Stopwatch(session, context, point, self.steps)
        key = f"{point}/repeat={repeat - self.warmup}" if repeat >= self.warmup else f"{point}/warmup={repeat}"
        for needs, labels in _by_statistics(session, unit.methods).items():
            stopwatch.measure(needs, labels, key, is_warmup=repeat < self.warmup)

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        first = Point(parse_list("batch", self.batch)[0], parse_list("context", self.context)[0]) if self.context else None
        return {label: _summary(of, str(first)) for label, of in records.items()}


def _by_statistics(session: Session, labels: Sequence[str]) -> dict[Needs, list[str]]:
    """Methods by what their prefill must gather; keeping a window of queries costs one small copy, so windows go together."""
    from dataclasses import replace

    window = session.needs(labels).window
    found: dict[Needs, list[str]] = {}
    for label in labels:
        found.setdefault(replace(session.methods[label].needs, window=window), []).append(label)
    return found


class _Stopwatch:
    def __init__(self, session: Session, context: UnitContext, point: Point, steps: int) -> None:
        self.session, self.context, self.point, self.steps = session, context, point, steps
        self.device = session.loaded.device
        self.tokens = session.prompt(point.batch, point.context)

    def measure(self, needs: Needs, labels: Sequence[str], key: str, *, is_warmup: bool) -> None:
        """Time one shared prefill, then each method's compression and decoding."""
        from kvbench.engine.timing import timed

        prompt: Prompt | None = None
        prefill_s = 0.0

        def prefill() -> None:
            nonlocal prompt, prefill_s
            prompt, prefill_s = timed(self.device, lambda: self.session.runner.prefill(self.tokens, needs))

        if self.session.spec.protocol == "prefill" and not self.context.guard(labels[0], prefill):
            return
        for label in labels:
            self.context.method_started(label)
            self.context.guard(label, partial(self._one, label, prompt, prefill_s, key, is_warmup))

    def _one(self, label: str, prompt: Prompt | None, prefill_s: float, key: str, is_warmup: bool) -> None:
        cache, hidden, prefill_s, compress_s = self._ready(label, prompt, prefill_s)
        decode_s = self._decode(cache, hidden)
        data = {"batch": self.point.batch, "context": self.point.context, "warmup": is_warmup, "read_path": READ_PATH}
        data |= {"prefill_s": prefill_s, "compress_s": compress_s, "decode_s": decode_s, "steps": self.steps}
        self.context.record(label, key, data)

    def _ready(self, label: str, prompt: Prompt | None, prefill_s: float) -> tuple[KVCache, Tensor, float, float]:
        """A cache that has the prompt, the state that predicts the next token, and what that took."""
        from kvbench.engine.timing import timed

        runner, method = self.session.runner, self.session.methods[label]
        if prompt is not None:
            cache, compress_s = timed(self.device, lambda: runner.compress(method, prompt))
            return cache, prompt.last_hidden[:, None], prefill_s, compress_s
        cache = runner.cache(method)
        hidden, prefill_s = timed(self.device, lambda: runner.forward(self.tokens, cache))
        return cache, hidden[:, -1:], prefill_s, 0.0

    def _decode(self, cache: KVCache, hidden: Tensor) -> float:
        """Seconds of ``steps`` greedy steps; tokens stay on the device."""
        from kvbench.engine.timing import timed

        runner = self.session.runner

        def walk(count: int, hidden: Tensor) -> Tensor:
            for _ in range(count):
                token = runner.logits(hidden[:, -1]).argmax(-1, keepdim=True).to(self.device)
                hidden = runner.forward(token, cache)
            return hidden

        hidden = walk(SETTLING_STEPS, hidden)
        return timed(self.device, lambda: walk(self.steps, hidden))[1]


def _summary(records: MethodRecords, asked_first: str) -> Summary:
    """Every point's figures; the flat fields are those of the point asked for first, where several lengths are."""
    by_point: dict[str, list[Mapping[str, Any]]] = {}
    for key in sorted(records):
        if not records[key]["warmup"]:
            by_point.setdefault(str(Point(records[key]["batch"], records[key]["context"])), []).append(records[key])
    if not by_point:
        return Summary()
    table = {point: _figures(repeats) for point, repeats in by_point.items()}
    first = table.get(asked_first) or next(iter(table.values()))
    flat = {name: median(list(values.values())) for name, (values, _, _) in first.items()}
    measured = [
        Measured(name, median(list(values.values())), unit, "noisy", better, point, samples=values)
        for point, figures in table.items()
        for name, (values, unit, better) in figures.items()
    ]
    timings = {point: {name: list(values.values()) for name, (values, _, _) in figures.items()} for point, figures in table.items()}
    return Summary({**flat, "read_path": READ_PATH, "timings": timings}, measured)


def _figures(repeats: Sequence[Mapping[str, Any]]) -> dict[str, tuple[dict[str, float], str, Better]]:
    """name → (values by repeat, unit, which is better)."""
    formulas: dict[str, tuple[Callable[[Mapping[str, Any]], float], str, Better]] = {
        "ttft_s": (lambda r: r["prefill_s"] + r["compress_s"], "seconds", "lower"),
        "prefill_s": (lambda r: r["prefill_s"], "seconds", "lower"),
        "compress_s": (lambda r: r["compress_s"], "seconds", "lower"),
        "tpot_s": (lambda r: r["decode_s"] / r["steps"], "seconds", "lower"),
        "tokens_per_s": (lambda r: r["batch"] * r["steps"] / r["decode_s"], "tokens/s", "higher"),
    }
    return {name: ({str(i): f(r) for i, r in enumerate(repeats)}, unit, better) for name, (f, unit, better) in formulas.items()}
