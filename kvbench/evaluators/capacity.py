"""The largest batch, or the longest context, whose cache fits: found by holding it and decoding from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.evaluators.base import Evaluator, MethodRecords, Summary, UnitContext, param
from kvbench.figures import Figure
from kvbench.metrics import probes, recorded
from kvbench.metrics.points import Point
from kvbench.spec import RunSpec, Unit

if TYPE_CHECKING:
    from kvbench.instruments.session import Session

MOST_BATCH, MOST_CONTEXT = 1024, 131_072
"""Where the search ends unless it is told; a context also ends at the model's positions."""
FREE = 0.9
"""Share of a CPU's free memory that probes may take."""


@dataclass(frozen=True)
class Capacity(Evaluator):
    """Doubled until it does not fit, then bisected. Each probe fills the method's cache with random keys and values and decodes.

    On a GPU memory really runs out. On a CPU that would end the machine: there a probe ends before it would hold more
    than the free memory. ``limit_gib`` is such a limit of one's own, on any device. Nothing is extrapolated: where the upper
    bound itself fits, that is all that is said.
    """

    name: ClassVar[str] = "capacity"
    title: ClassVar[str] = "the largest batch or the longest context that fits, by bisection with real allocation"
    record: ClassVar[Any] = recorded.Probe
    protocols: ClassVar[tuple[str, ...]] = ("prefill",)
    find: str = param("batch", "batch or context: which is sought", among=("batch", "context"))
    batch: int = param(1, "find=context: sequences at once", least=1)
    context: int = param(0, "find=batch: prompt length, tokens; 0 is the run's --context", least=0)
    most: int = param(0, f"end of the search; 0 is {MOST_BATCH} sequences, or the model's positions", least=0)
    grain: int = param(256, "find=context: tokens up to which the length is found", least=1)
    steps: int = param(4, "decode steps that show that it runs", least=1)
    path: str = param("auto", "read path, as in speed", among=("auto", "fused", "reference"))
    limit_gib: float = param(0.0, "GiB that cache and decoding may take beside the weights; 0 is all that is free", least=0)

    def longest(self, spec: RunSpec) -> int:
        return self.most if self.find == "context" else self.context or spec.context

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        return [Unit(f"{self.name}/{i}", self.name, i, (label,), steps=1) for i, label in enumerate(methods)]

    def run(self, unit: Unit, session: Session, context: UnitContext) -> None:
        """One method's whole search."""
        from kvbench.instruments.roofline import measured_once

        measured_once(session)  # while the device is empty
        grain, most = self._scale(session.loaded.shape.max_positions)
        facts = {"find": self.find, "grain": grain, "most": most}
        for label in unit.methods:
            probe = _Probe(session, context, label, self, facts)
            context.alone(label, partial(_search, probe.fits, most, grain))

    def _scale(self, positions: int) -> tuple[int, int]:
        """What values are multiples of, and the largest that is tried."""
        bound = positions - self.steps if positions else MOST_CONTEXT
        most = self.most or (MOST_BATCH if self.find == "batch" else max(1, bound))
        grain = 1 if self.find == "batch" else min(self.grain, most)
        return grain, most // grain * grain

    def point(self, value: int, spec: RunSpec) -> Point:
        """Where ``value`` is tried."""
        return Point(value, self.context or spec.context) if self.find == "batch" else Point(self.batch, value)

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        return {label: probes.summary(of) for label, of in records.items()}

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        return probes.tables(records, baseline)


def _search(fits: Callable[[int], bool], most: int, grain: int) -> None:
    """Try multiples of ``grain`` up to ``most``: doubled until one does not fit, then halfway between."""
    good, tried, top = 0, 1, most // grain
    while fits(tried * grain):
        good = tried
        if good == top:
            return
        tried = min(2 * tried, top)
    bad = tried
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle * grain) else (good, middle)


@dataclass(frozen=True)
class _Probe:
    """Tries sizes of one method, and journals what came of each."""

    session: Session
    context: UnitContext
    label: str
    asked: Capacity
    facts: Mapping[str, Any]

    def fits(self, value: int) -> bool:
        """Whether a cache of this size can be filled and decoded from."""
        from kvbench.instruments.out_of_memory import OverBudget, attempt

        point, budget = self.asked.point(value, self.session.spec), self._budget()
        found: dict[str, Any] = {}
        said = attempt(self.session, lambda: found.update(self._held(point, budget)))
        data = {**self.facts, "batch": point.batch, "context": point.context, "budget_bytes": budget, "out_of_memory": said is not None}
        if said is not None:
            found = {"limited_by": "budget" if isinstance(said, OverBudget) else "allocation", "reason": str(said)}
        self.context.record(self.label, str(point), {**data, **found})
        if self.session.loaded.device.type == "cuda":
            self.session.runner.folds.held.clear()
            self.session.release()
        return said is None

    def _budget(self) -> int | None:
        """Bytes that may be held beside the weights; ``None`` where memory itself decides."""
        if self.asked.limit_gib:
            return int(self.asked.limit_gib * 1024**3)
        return None if self.session.loaded.device.type == "cuda" else int(FREE * self.session.free_memory())

    def _held(self, point: Point, budget: int | None) -> dict[str, Any]:
        """Fill, decode, and say what that held.

        Raises:
            OverBudget: more than ``budget``.
        """
        from kvbench.instruments.out_of_memory import OverBudget
        from kvbench.instruments.stopwatch import Stopwatch, allocated, peak, reset_peak

        def check(held: int, dense: int) -> None:
            if budget is not None and held + 2 * dense > budget:  # a layer as it is drawn, and as it will be stored at most
                raise OverBudget(f"{held + 2 * dense:,} bytes would be held, and {budget:,} may be")

        watch = Stopwatch(self.session, point, self.asked.path, self.asked.steps, energy=False)  # type: ignore[arg-type]  # checked
        reset_peak(watch.device)
        before = allocated(watch.device)
        found = watch.decode(self.label, watch.drawn(self.label, check), before)
        most = peak(watch.device)
        found["peak_bytes"] = None if most is None or before is None else most - before
        if budget is not None and (found["peak_bytes"] or found["stored_bytes"]) > budget:
            raise OverBudget(f"{found['peak_bytes'] or found['stored_bytes']:,} bytes were held, and {budget:,} may be")
        return found
