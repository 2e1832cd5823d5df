"""A decode step's norms, activations and products in plain PyTorch: what the kernels must equal, and what runs without them.

Each rounds to the model's dtype where Hugging Face's unfused modules do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.errors import UnsupportedModel

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}
"""The activations that have a fused form, by name."""


def activation_named(name: str) -> Callable[[Tensor], Tensor]:
    """The activation itself.

    Raises:
        UnsupportedModel: It has no fused form.
    """
    if name not in ACTIVATIONS:
        raise UnsupportedModel(
            f"activation '{name}' has no fused form; known are {', '.join(ACTIVATIONS)}",
            hint="run the model's own forward for this family",
        )
    return ACTIVATIONS[name]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``RMSNorm(x) * weight`` over the last axis: normed in float32 (float64 in float64), rounded, then weighed in the dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def add_norm(stream: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """``stream += delta`` in place, then its norm; both ``[B, H]``."""
    if delta is not None:
        stream.add_(delta)
    return rms_norm(stream, weight, eps)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """``act(gate) * up`` of ``[B, 2I]``, gates first: ``[B, I]``."""
    gate, up = gate_up.chunk(2, dim=-1)
    return activation_named(activation)(gate) * up


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``: ``[B, K]`` and ``[N, K]`` to ``[B, N]``."""
    return F.linear(x, weight, bias)
