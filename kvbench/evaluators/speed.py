"""Time to the first token and per token, every method in turn within each repeat, beside what the bytes allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.errors import UsageError
from kvbench.evaluators.base import Evaluator, MethodRecords, Summary, UnitContext, param
from kvbench.figures import Figure
from kvbench.metrics import recorded, speeds
from kvbench.metrics import speed_tables as speed_figures
from kvbench.metrics.points import parse_list, points
from kvbench.spec import RunSpec, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.needs import Needs
    from kvbench.instruments.protocol import Prompt
    from kvbench.instruments.session import Session
    from kvbench.instruments.stopwatch import Filled, Stopwatch

KEPT = "speed: out of memory"
"""Name under which a session keeps the (method, point) pairs that are not tried again."""


@dataclass(frozen=True)
class Speed(Evaluator):
    """TTFT = prefill (with the statistics the method asks for) + compress; TPOT over a greedy decode.

    A repeat goes through all methods before the next begins, so that a drift of the machine meets all of
    them alike. The first ``warmup`` repeats are recorded as such and not counted. A point that runs out of memory is
    recorded as that, and the run goes on.
    """

    name: ClassVar[str] = "speed"
    title: ClassVar[str] = "TTFT (prefill + compress), TPOT, tokens/s by batch and context, beside the byte roofline"
    record: ClassVar[Any] = recorded.Timed
    batch: str = param("1", "sequences at once; several as 1+8+32")
    context: str = param("", "prompt lengths, tokens, as 2048+32768; empty is the run's --context")
    steps: int = param(16, "decode steps timed", least=1)
    repeats: int = param(5, "timed repeats; below 4, compare can show no difference", least=1)
    warmup: int = param(1, "repeats before them, not counted", least=0)
    path: str = param(
        "auto",
        "auto: kernels over the stored bytes (fused) on a GPU with Triton, else reference; fused on a CPU is plain PyTorch, for tests",
        among=("auto", "fused", "reference"),
    )
    fill: str = param(
        "prefill",
        "prefill; random: keys and values drawn straight into the cache, for points too large to prefill",
        among=("prefill", "random"),
    )
    energy: bool = param(True, "read the GPU's energy counter around the timed steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_list("batch", self.batch)
        if self.context:
            parse_list("context", self.context)

    def check(self, spec: RunSpec) -> None:
        if self.fill == "random" and spec.protocol != "prefill":
            raise UsageError(
                f"speed:fill=random fills a compressed prompt, and --protocol {spec.protocol} has none",
                hint="--protocol prefill, or speed:fill=prefill",
            )

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        rounds = self.warmup + self.repeats
        return self.units_of(len(points(spec, self.batch, self.context)) * rounds, methods, extra=1)

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """One repeat at one point, over all methods; those that ask for the same statistics share a timed prefill."""
        from kvbench.instruments.roofline import measured_once
        from kvbench.instruments.stopwatch import Stopwatch

        measured_once(session)  # while the device is empty
        rounds = self.warmup + self.repeats
        point = points(session.spec, self.batch, self.context)[unit.index // rounds]
        repeat = unit.index % rounds
        key = f"{point}/repeat={repeat - self.warmup}" if repeat >= self.warmup else f"{point}/warmup={repeat}"
        watch = Stopwatch(session, point, self.path, self.steps, self.energy)  # type: ignore[arg-type]  # checked above
        turn = _Turn(watch, context, key, {"batch": point.batch, "context": point.context, "warmup": repeat < self.warmup})
        if self.fill == "random":
            turn.draw(unit.methods)
        elif session.spec.protocol == "streaming":
            turn.stream(unit.methods)
        else:
            for needs, labels in _by_statistics(session, unit.methods).items():
                turn.prefill(needs, labels)

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        contexts = parse_list("context", self.context) if self.context else [None]
        first = (parse_list("batch", self.batch)[0], contexts[0])
        return speeds.summaries(records, baseline, first)

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        return speed_figures.tables(records, baseline)


def _by_statistics(session: Session, labels: Sequence[str]) -> dict[Needs, list[str]]:
    """Methods by what their prefill must gather; keeping a window of queries costs one small copy, so windows go together."""
    window = session.needs(labels).window
    found: dict[Needs, list[str]] = {}
    for label in labels:
        found.setdefault(replace(session.methods[label].needs, window=window), []).append(label)
    return found


@dataclass(frozen=True)
class _Turn:
    """One repeat at one point.

    Attributes:
        key: Of its records. facts: What all of them say.
    """

    watch: Stopwatch
    context: UnitContext
    key: str
    facts: Mapping[str, Any]

    def prefill(self, needs: Needs, labels: Sequence[str]) -> None:
        """Time one shared prefill, then each method's compression and decoding."""
        shared: list[tuple[Prompt, float]] = []
        left = self._left(labels)
        if not left or not self._try(left, lambda: shared.append(self.watch.prefilled(self._tokens(), needs))):
            return
        for label in left:
            self._time(label, partial(self.watch.compressed, label, *shared[0]))

    def stream(self, labels: Sequence[str]) -> None:
        tokens = self._tokens()
        for label in self._left(labels):
            self._time(label, partial(self.watch.streamed, label, tokens))

    def draw(self, labels: Sequence[str]) -> None:
        for label in self._left(labels):
            self._time(label, partial(self.watch.drawn, label))

    def _tokens(self) -> Tensor:
        return self.watch.session.prompt(self.watch.point.batch, self.watch.point.context)

    def _left(self, labels: Sequence[str]) -> list[str]:
        return [label for label in labels if (label, str(self.watch.point)) not in self._full]

    @property
    def _full(self) -> set[tuple[str, str]]:
        found: set[tuple[str, str]] = self.watch.session.kept.setdefault(KEPT, set())
        return found

    def _time(self, label: str, fill: Callable[[], Filled]) -> None:
        """Fill a method's cache, decode from it, and journal what that took."""
        from kvbench.instruments.stopwatch import allocated

        def measure() -> None:
            before = allocated(self.watch.device)
            filled = fill()
            times = {"prefill_s": filled.prefill_s, "compress_s": filled.compress_s} if filled.prefill_s is not None else {}
            self.context.record(label, self.key, {**self.facts, **times, **self.watch.decode(label, filled, before)})

        self.context.method_started(label)
        self._try([label], measure)
        if self.watch.device.type == "cuda":
            self.watch.session.runner.folds.held.clear()  # another method's folded weights are none of the next one's memory
            self.watch.session.release()

    def _try(self, labels: Sequence[str], action: Callable[[], None]) -> bool:
        """Whether ``action`` came to its end. What runs out of memory is journaled for all of ``labels``, and is no failure."""
        from kvbench.instruments.out_of_memory import attempt

        said: list[MemoryError | None] = []
        done = self.context.guard(labels[0], lambda: said.append(attempt(self.watch.session, action)))
        if not done or not said or said[0] is None:
            return done
        for label in labels:
            self._full.add((label, str(self.watch.point)))
            self.context.record(label, self.key, {**self.facts, "out_of_memory": True, "reason": str(said[0])})
        return False
