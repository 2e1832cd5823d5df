"""Which of several ways to compute a product is fastest on this device: timed once a shape, and remembered.

A decode step reads each weight once, never from the second-level cache, and one weight after the other. So ways are timed
over all weights of a shape in turn, as a step's graph would run them, or with the cache filled in between where those would fit it.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvbench.errors import told
from kvbench.fused.graph import Graphs

_LOG = logging.getLogger(__name__)
_REPEATS = 5
_IN_A_GRAPH = 10
_CHOICES: dict[Hashable, Choice] = {}
Way = Callable[[Tensor], Tensor]
"""Computes with the weight that it is given."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The way chosen by name, and the median microseconds of every way that was timed."""

    name: str
    microseconds: dict[str, float] = field(default_factory=dict)


def fastest(
    key: Hashable, ways: Mapping[str, Way], weights: Sequence[Tensor], device: torch.device, *, reset: Callable[[], object] | None = None
) -> Choice:
    """The fastest of ``ways`` on a CUDA device; the first is the reference that the others must agree with.

    Args:
        key: What the choice depends on: it is made once for each key and device.
        ways: By name, each a call without a host synchronisation that returns its result.
        weights: Of one shape, in the order in which a step reads them.
        reset: Called before results are compared, where a way changes what the next one reads.

    A way that fails or disagrees is left out and said so in the log. Not to be called while a graph is captured.
    """
    known = (key, device)
    if known not in _CHOICES:
        only = Choice(next(iter(ways)))
        _CHOICES[known] = only if len(ways) == 1 else _choose(str(key), ways, weights, device, reset or (lambda: None))
    return _CHOICES[known]


def _choose(
    what: str, ways: Mapping[str, Way], weights: Sequence[Tensor], device: torch.device, reset: Callable[[], object]
) -> Choice:  # fmt: skip
    names = list(ways)
    with torch.no_grad(), torch.cuda.device(device):
        reset()
        reference = ways[names[0]](weights[0]).clone()
        sound = names[:1]
        for name in names[1:]:
            reset()
            if _agrees(what, name, lambda way=ways[name]: way(weights[0]), reference):  # type: ignore[misc]
                sound.append(name)
        microseconds = _timed({name: ways[name] for name in sound}, weights, device)
    return Choice(min(microseconds, key=microseconds.__getitem__), microseconds)


def _timed(ways: Mapping[str, Way], weights: Sequence[Tensor], device: torch.device) -> dict[str, float]:
    """Microseconds of each way for one weight that is not in the cache."""
    graphs, filler = Graphs(device), _cache_sized(device)
    try:
        if sum(weight.nbytes for weight in weights) >= 2 * filler.nbytes:
            return {name: _microseconds(graphs.record(_over(way, weights)), len(weights)) for name, way in ways.items()}
        alone = _microseconds(graphs.record(_several(filler.amax)), _IN_A_GRAPH)
        both = {name: _several(lambda way=way: (filler.amax(), way(weights[0]))) for name, way in ways.items()}  # type: ignore[misc]
        return {name: max(0.0, _microseconds(graphs.record(work), _IN_A_GRAPH) - alone) for name, work in both.items()}
    finally:
        graphs.close()


def _over(way: Way, weights: Sequence[Tensor]) -> Callable[[], None]:
    def run() -> None:
        for weight in weights:
            way(weight)

    return run


def _agrees(what: str, name: str, way: Callable[[], Tensor], reference: Tensor) -> bool:
    """Whether a way runs, and gives the reference to a few roundings; it is compiled here, not while it is timed."""
    try:
        result = way().float()
    except Exception as error:  # a compiler's errors share no base, and another way is at hand
        kind = type(error).__name__
        level = logging.INFO if kind == "OutOfResources" else logging.WARNING  # a tile too large for this device is no fault
        _LOG.log(level, "%s: '%s' cannot run here and is left out (%s: %s)", what, name, kind, told(error))
        return False
    wide = reference.float()
    gap = float((result - wide).norm() / wide.norm().clamp_min(1e-30))
    allowed = max(4 * torch.finfo(reference.dtype).eps, 2e-3)  # coarse: it tells a wrong kernel from a rounding
    if not gap <= allowed:  # a NaN too
        _LOG.warning("%s: '%s' is off by %.2g of the result and is left out", what, name, gap)
        return False
    return True


def _cache_sized(device: torch.device) -> Tensor:
    """A buffer that fills the second-level cache when it is read. Were it written, the cache would still be emptying while a way runs."""
    level2 = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
    return torch.zeros(max(128 << 20, 2 * level2) // 4, dtype=torch.int32, device=device)


def _microseconds(replay: Callable[[], object], runs: int) -> float:
    """Median device microseconds of one of the ``runs`` that a graph holds."""
    times = []
    for _ in range(_REPEATS):
        start, end = _event(), _event()
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) * 1000.0 / runs)
    return statistics.median(times)


def _several(work: Callable[[], object]) -> Callable[[], None]:
    """``work`` as often as a graph holds it, so that starting the graph weighs little."""

    def repeated() -> None:
        for _ in range(_IN_A_GRAPH):
            work()

    return repeated


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
