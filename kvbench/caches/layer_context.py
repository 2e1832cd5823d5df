"""Where a layer stands in a model, and how a run uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kvbench.caches.reckon import Place
from kvbench.caches.rope import Rope


@dataclass(frozen=True)
class LayerContext(Place):
    """Where a layer stands and how the run uses it.

    Attributes:
        dtype: Format in which keys and values are stored.
        protocol: ``prefill`` compresses once after the prompt; ``streaming`` from the first token.
        context: Tokens that a streaming budget is a fraction of.
        chunk_size: Streaming: tokens between two compressions; 1 is exact.
        seed: Seed of methods that draw.
        rope: The model's rotary embedding, or ``None``.
        artefacts: Calibrated tensors by name, for this layer.
        module: The model's attention module of this layer, where there is a model.
        prompt_tokens: Length of a prompt that comes in several forwards; ``None`` where the first forward is all of it.
        later: Several tokens in one forward after the prompt are stored as decoded ones are (``append``), or refused.
    """

    dtype: torch.dtype
    protocol: Literal["prefill", "streaming"] = "prefill"
    context: int | None = None
    chunk_size: int = 1
    seed: int = 0
    rope: Rope | None = None
    artefacts: Mapping[str, Tensor] = field(default_factory=dict)
    module: nn.Module | None = None
    prompt_tokens: int | None = None
    later: Literal["append", "refuse"] = "append"

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerContext:
        """A copy of a layer stands where the layer does, in the same model."""
        return self
