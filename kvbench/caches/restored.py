"""A prompt as a layer gives it back once it has compressed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kvbench.caches.buffers import scatter_tokens


@dataclass(frozen=True)
class Restored:
    """A prompt as it is read back, every token in its own place.

    Attributes:
        keys, values: ``[B, Hkv, T, D]``, zeros where a token is not held.
        held: ``[B, Hkv, T]``.
    """

    keys: Tensor
    values: Tensor
    held: Tensor

    @classmethod
    def at(cls, places: Tensor, keys: Tensor, values: Tensor, total: int) -> Self:
        """Of ``total`` tokens those at ``places`` ``[B, Hkv, m]``, whose ``keys`` and ``values`` ``[B, Hkv, m, D]`` are held."""
        held = torch.zeros(*keys.shape[:2], total, dtype=torch.bool, device=keys.device).scatter(2, places, True)
        return cls(scatter_tokens(keys, places, total), scatter_tokens(values, places, total), held)
