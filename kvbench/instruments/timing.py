"""The one place where time is taken: the device is synchronised at both ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def synchronise(device: torch.device) -> None:
    """Wait for all GPUs that may hold a part of the model; nothing on a CPU."""
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)


def timed(device: torch.device, action: Callable[[], T]) -> tuple[T, float]:
    """What ``action`` returns, and its seconds."""
    synchronise(device)
    started = time.perf_counter()
    result = action()
    synchronise(device)
    return result, time.perf_counter() - started
