"""One method at one point under the clock: prefill, compress, decode, and what memory and energy that took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvbench.instruments.decode import SETTLING_STEPS, Decoder, Path, decoder_for
from kvbench.instruments.filled_cache import Check, random_cache
from kvbench.instruments.roofline import Roofline, measured_once
from kvbench.instruments.timing import timed
from kvbench.models.telemetry import energy_joules

if TYPE_CHECKING:
    from kvbench.caches.cache import KVCache
    from kvbench.caches.needs import Needs
    from kvbench.instruments.protocol import Prompt
    from kvbench.instruments.session import Session
    from kvbench.metrics.points import Point


@dataclass(frozen=True)
class Filled:
    """A cache of a prompt, and what it begins to decode with.

    Attributes:
        again: Makes the same cache once more.
        first: Final hidden states ``[B, hidden]`` that predict the next tokens, or those tokens ``[B]``.
        prefill_s, compress_s: Seconds that it took; ``None`` where nothing was prefilled.
    """

    cache: KVCache
    first: Tensor
    again: Callable[[], KVCache]
    prefill_s: float | None = None
    compress_s: float | None = None


@dataclass(frozen=True)
class Stopwatch:
    """Times one point.

    Attributes:
        path, steps: Which decode path, and how many steps of it. energy: Read the GPU's energy counter.
    """

    session: Session
    point: Point
    path: Path
    steps: int
    energy: bool = True

    @property
    def device(self) -> torch.device:
        return self.session.loaded.device

    def prefilled(self, tokens: Tensor, needs: Needs) -> tuple[Prompt, float]:
        """A prompt of tokens ``[B, C]`` with what methods ask for, and its seconds."""
        return timed(self.device, partial(self.session.runner.prefill, tokens, needs))

    def compressed(self, label: str, prompt: Prompt, prefill_s: float) -> Filled:
        """A method's cache of a shared prompt."""
        make = partial(self.session.runner.compress, self.session.methods[label], prompt)
        if self.device.type == "cuda":  # once before, so that the clock sees no allocation from the driver
            make()
        cache, seconds = timed(self.device, make)
        return Filled(cache, prompt.last_hidden, make, prefill_s, seconds)

    def streamed(self, label: str, tokens: Tensor) -> Filled:
        """A method's cache of tokens ``[B, C]`` that it has stored from the first on."""

        def make() -> tuple[KVCache, Tensor]:
            cache = self.session.runner.cache(self.session.methods[label])
            return cache, self.session.runner.forward(tokens, cache)[:, -1].clone()

        (cache, hidden), seconds = timed(self.device, make)
        return Filled(cache, hidden, lambda: make()[0], seconds, 0.0)

    def drawn(self, label: str, check: Check | None = None) -> Filled:
        """A method's cache of random keys and values, and random tokens to go on with."""
        session, batch = self.session, self.point.batch
        make = partial(random_cache, session.runner, session.methods[label], batch, self.point.context, session.spec.seed, check)
        generator = torch.Generator().manual_seed(session.spec.seed)
        first = torch.randint(session.loaded.shape.vocab_size, (batch,), generator=generator).to(self.device)
        return Filled(make(), first, make)

    def decode(self, label: str, filled: Filled, before: int | None) -> dict[str, Any]:
        """What a record says of decoding from ``filled``, whose cache is used up.

        Args:
            before: Bytes that the allocator held when there was no cache yet.
        """
        stored = filled.cache.ledger().stored
        reserve = self.steps + max(SETTLING_STEPS.values())
        decoder = decoder_for(self.session, label, filled.cache, path=self.path, reserve=reserve, again=filled.again)
        try:
            decoder.start(filled.first)
            decoder.steps(SETTLING_STEPS[decoder.read_path])
            held, read = allocated(self.device), decoder.read_bytes()
            seconds, joules = self._timed(decoder)
            return self._record(decoder, stored, seconds) | {
                "read_bytes": read,
                "allocator_bytes": None if held is None or before is None else held - before,
                "energy_joules": joules,
            }
        finally:
            decoder.close()

    def _timed(self, decoder: Decoder) -> tuple[float, float | None]:
        """Seconds and joules of the steps."""
        gpus = sorted({d.index or 0 for d in self.session.runner.geometry.devices if d.type == "cuda"}) if self.energy else []
        start = energy_joules(gpus)
        seconds = timed(self.device, lambda: decoder.steps(self.steps))[1]
        end = energy_joules(gpus)
        return seconds, None if start is None or end is None else end - start

    def _record(self, decoder: Decoder, stored: int, seconds: float) -> dict[str, Any]:
        weights, bandwidth = decoder.weight_bytes(), measured_once(self.session)
        return {
            "read_path": decoder.read_path, "reason": decoder.reason, "decode_s": seconds, "steps": self.steps,
            "prepare_s": decoder.prepare_s, "capture_s": decoder.capture_s, "flush_s": decoder.flush_s,
            "stored_bytes": stored, "weight_bytes": weights, "bandwidth": bandwidth,
            "limit": None if weights is None else Roofline(weights, stored, bandwidth).limit(self.point.batch),
        }  # fmt: skip


def allocated(device: torch.device) -> int | None:
    """Bytes that PyTorch's allocator holds in use on all GPUs; ``None`` on a CPU."""
    if device.type != "cuda":
        return None
    return sum(torch.cuda.memory_allocated(index) for index in range(torch.cuda.device_count()))


def reset_peak(device: torch.device) -> None:
    """Begin to watch the allocator's peak anew, on all GPUs."""
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def peak(device: torch.device) -> int | None:
    """Most bytes that the allocator held in use since :func:`reset_peak`, over all GPUs; ``None`` on a CPU."""
    if device.type != "cuda":
        return None
    return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
