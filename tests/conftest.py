"""What several tests share: tiny seeded models, the embedded model, and the folder of real samples."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if TYPE_CHECKING:
    import torch

    from kvbench.models import LoadedModel

FAMILIES = ("qwen2", "llama")
"""Shapes that every method is tried on: both with grouped heads, one with biases, one with three queries a KV head."""

_SHAPES: dict[str, dict[str, int]] = {
    "qwen2": {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64},
    "llama": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96},
}


def make_tiny_config(family: str) -> dict[str, Any]:
    """A 4-layer config with head size 16 and 128 tokens of vocabulary, as a plain dict."""
    return {
        "model_type": family, **_SHAPES[family], "num_hidden_layers": 4, "head_dim": 16, "intermediate_size": 96,
        "vocab_size": 128, "max_position_embeddings": 2048, "initializer_range": 0.2, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip


def make_tiny_model(family: str, dtype: torch.dtype | None = None, seed: int = 0) -> Any:
    """A seeded random model of ``make_tiny_config``; float64 unless told, eval mode, no gradients.

    Weights are spread widely enough (standard deviation 0.2) that attention is far from uniform.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**make_tiny_config(family))
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
    import torch

    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            exact = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
            exact.weight.data.copy_(module.weight)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, exact)


@pytest.fixture
def tiny_config() -> Callable[[str], dict[str, Any]]:
    """``tiny_config("qwen2")`` → a config dict."""
    return make_tiny_config


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """``tiny_model("llama", torch.float64)`` → a seeded random model."""
    return make_tiny_model


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The mirror of real samples; skips where ``KVBENCH_DATA`` names none."""
    folder = os.environ.get("KVBENCH_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("KVBENCH_DATA names no folder of real samples")
    return Path(folder)


@pytest.fixture(scope="session")
def embedded_model() -> LoadedModel:
    """The embedded model in float32 on the CPU; skips where it is neither cached nor to be had."""
    from kvbench.errors import ModelError
    from kvbench.models import load_model
    from kvbench.spec import ModelSpec

    try:
        return load_model(ModelSpec(dtype="float32", device="cpu"), seed=0, progress=lambda stage, done, total: None)
    except ModelError as error:
        pytest.skip(f"the embedded model is not to be had here: {error.message}")
