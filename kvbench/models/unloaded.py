"""A model without storage: how large it is, and whether its code has the attention that kvbench can replace."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from kvbench.models.shape import refusal

if TYPE_CHECKING:
    import torch


def outline_of(config: Any) -> Any:
    """The model without storage: what its parts are and how large."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise refusal(config.to_dict(), "transformers has no causal language model of this type") from error


def check_attention(outline: Any) -> None:
    """Refuse what only the code shows: attention that cannot be replaced, another rotation, other layers."""
    import torch

    code = sys.modules[type(outline).__module__]
    config = outline.config.to_dict()
    if not hasattr(code, "ALL_ATTENTION_FUNCTIONS"):
        raise refusal(config, "its attention cannot be replaced (no AttentionInterface)")
    rotate = getattr(code, "rotate_half", None)
    if rotate is None:
        raise refusal(config, "it has no half-split rotary position embedding")
    if rotate(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() != [-3.0, -4.0, 1.0, 2.0]:
        raise refusal(config, "its rotary embedding does not turn halves of a head")
    if any(name.endswith("sinks") for name, _ in outline.named_parameters()):
        raise refusal(config, "it uses learned attention sinks")
    attention = sum(hasattr(m, "layer_idx") and hasattr(m, "scaling") and hasattr(m, "config") for m in outline.modules())
    if attention != config["num_hidden_layers"]:
        raise refusal(config, f"{attention} of its {config['num_hidden_layers']} layers have standard attention")


def weight_bytes(outline: Any, dtype: torch.dtype) -> int:
    """Bytes of the weights in ``dtype``, tied ones counted once."""
    numbers: int = sum(p.numel() for p in outline.parameters())
    return numbers * dtype.itemsize
