"""Which of several ways to compute the same is fastest on this device: timed once a shape, and remembered.

The second-level cache is overwritten before every timing: a decode step reads each weight once, never from there.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

_LOG = logging.getLogger(__name__)
_REPEATS = 20
_HEAD_START = 40
"""Writes of the cache's size that are queued first, so that the host is ahead and its launches are not timed."""
_CHOICES: dict[Hashable, Choice] = {}


@dataclass(frozen=True, slots=True)
class Choice:
    """The way chosen by name, and the median microseconds of every way that was timed."""

    name: str
    microseconds: dict[str, float] = field(default_factory=dict)


def fastest(
    key: Hashable, ways: Mapping[str, Callable[[], Tensor]], device: torch.device, *, reset: Callable[[], object] | None = None
) -> Choice:
    """The fastest of ``ways`` on a CUDA device; the first is the reference that the others must agree with.

    Args:
        key: What the choice depends on: it is made once for each key and device.
        ways: By name, each a call without a host synchronisation that returns its result.
        reset: Called before results are compared, where a way changes what the next one reads.

    A way that fails or disagrees is left out and said so in the log. Not to be called while a graph is captured.
    """
    known = (key, device)
    if known not in _CHOICES:
        _CHOICES[known] = _choose(str(key), ways, device, reset or (lambda: None)) if len(ways) > 1 else Choice(next(iter(ways)))
    return _CHOICES[known]


def _choose(what: str, ways: Mapping[str, Callable[[], Tensor]], device: torch.device, reset: Callable[[], object]) -> Choice:
    names = list(ways)
    with torch.no_grad(), torch.cuda.device(device):
        reset()
        reference = ways[names[0]]().clone()
        sound = names[:1]
        for name in names[1:]:
            reset()
            if _agrees(what, name, ways[name], reference):
                sound.append(name)
        cache = _cache_sized(device)
        microseconds = {name: _median_us(ways[name], cache) for name in sound}
    return Choice(min(microseconds, key=microseconds.__getitem__), microseconds)


def _agrees(what: str, name: str, way: Callable[[], Tensor], reference: Tensor) -> bool:
    """Whether a way runs, and gives the reference to a few roundings; it is compiled here, not while it is timed."""
    try:
        result = way().float()
    except Exception as error:  # a compiler's errors share no base, and another way is at hand
        kind = type(error).__name__
        level = logging.INFO if kind == "OutOfResources" else logging.WARNING  # a tile too large for this device is no fault
        _LOG.log(level, "%s: '%s' cannot run here and is left out (%s: %s)", what, name, kind, str(error).split("\n")[0])
        return False
    wide = reference.float()
    gap = float((result - wide).norm() / wide.norm().clamp_min(1e-30))
    allowed = max(4 * torch.finfo(reference.dtype).eps, 2e-3)  # coarse: it tells a wrong kernel from a rounding
    if not gap <= allowed:  # a NaN too
        _LOG.warning("%s: '%s' is off by %.2g of the result and is left out", what, name, gap)
        return False
    return True


def _cache_sized(device: torch.device) -> Tensor:
    """A buffer that overwrites the second-level cache when it is written."""
    level2 = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
    return torch.empty(max(128 << 20, 2 * level2), dtype=torch.int8, device=device)


def _median_us(way: Callable[[], Tensor], cache: Tensor) -> float:
    """Median device microseconds of a way, cold."""
    starts, ends = ([_event() for _ in range(_REPEATS)] for _ in range(2))
    for _ in range(_HEAD_START):
        cache.zero_()
    for start, end in zip(starts, ends, strict=True):
        cache.zero_()
        start.record()
        way()
        end.record()
    torch.cuda.synchronize(cache.device)
    return statistics.median(float(start.elapsed_time(end)) for start, end in zip(starts, ends, strict=True)) * 1000.0


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
