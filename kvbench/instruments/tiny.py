"""Tiny seeded models in float64, on which exactness can be shown to 1e-10."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FAMILIES = ("qwen2", "llama")
"""Shapes that every method is tried on: both with grouped heads, one with biases, one with three queries a KV head."""

_SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
_SHAPES = {"llama": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96}}


def make_tiny_config(family: str) -> dict[str, Any]:
    """A 4-layer config of any family with head size 16 and 128 tokens of vocabulary, as a plain dict."""
    return {
        "model_type": family, **_SHAPES.get(family, _SHAPE), "num_hidden_layers": 4, "head_dim": 16, "intermediate_size": 96,
        "vocab_size": 128, "max_position_embeddings": 2048, "initializer_range": 0.2, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip


def make_tiny_model(family: str, dtype: torch.dtype | None = None, seed: int = 0, **changes: Any) -> Any:
    """A seeded random model of ``make_tiny_config`` with ``changes``; float64 unless told, eval mode, no gradients.

    Weights are spread widely enough (standard deviation 0.2) that attention is far from uniform.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**make_tiny_config(family) | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    _keep_float64(model)
    return model.to(dtype or torch.float64).eval().requires_grad_(False)


def _keep_float64(model: Any) -> None:
    """Replace the model's RMS norms, which round to float32 inside: a test to 1e-10 needs float64 throughout."""
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _exact(module))


def _exact(norm: Any) -> torch.nn.RMSNorm:
    """The same norm in float64; some families keep the weight less one.

    Raises:
        ValueError: it computes something else.
    """
    import torch

    epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    x = torch.linspace(-1, 2, norm.weight.numel(), dtype=torch.float64)
    for weight in (norm.weight, norm.weight + 1):
        exact = torch.nn.RMSNorm(weight.shape, eps=epsilon, dtype=torch.float64)
        exact.weight.data.copy_(weight)
        if torch.allclose(exact(x), norm(x).double(), rtol=1e-5):
            return exact
    raise ValueError(f"{type(norm).__name__} is no RMS norm that can be done in float64")
