"""What tests of methods make again and again: a method by its text, and seeded numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvbench.methods.base import resolve
from kvbench.spec import MethodSpec, RunSpec


def method_of(text: str, **run: Any) -> Any:
    """The method that a run with these settings would have."""
    return resolve(MethodSpec.parse(text), RunSpec(**run))


def draw(*shape: int, seed: int) -> Tensor:
    """Normal numbers in float64; the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
