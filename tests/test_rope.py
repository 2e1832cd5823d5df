"""A model's own rotation, undone and averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kvbench.caches.cache import Geometry, decoder_of
from kvbench.caches.rope import Rope

pytestmark = pytest.mark.fast
FIRST, COUNT = 37, 11
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
}  # fmt: skip


def apply(name: str, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation as the family's own file writes it."""
    from importlib import import_module

    rotate: Callable[..., tuple[Tensor, Tensor]] = import_module(f"transformers.models.{name}.modeling_{name}").apply_rotary_pos_emb
    return rotate(x, x, cos, sin)[0]


def rotated(model: Any, name: str, x: Tensor, first: int) -> Tensor:
    positions = torch.arange(first, first + x.shape[2])[None]
    return apply(name, x, *decoder_of(model).rotary_emb(x, positions))


def some(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest, family: str, tiny_config: Callable[[str], dict[str, Any]]) -> Any:
    """A one-layer model of each family and kind of rotation."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = tiny_config(family) | {"num_hidden_layers": 1}
    if VARIANTS[request.param]:
        config["rope_parameters"] = {"rope_theta": 10000.0, **VARIANTS[request.param]}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).double()


@pytest.fixture
def partial_model() -> Any:
    """Half of each head's channels turn (Phi)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "phi", hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1, intermediate_size=64,
        vocab_size=128, partial_rotary_factor=0.5,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).double()


def test_unrotating_undoes_the_models_own_rotation(model: Any, family: str) -> None:
    x = some(2, 3, COUNT, 16)
    turned = rotated(model, family, x, FIRST)
    rope = Geometry.of(model).rope
    assert float((turned - x).abs().max()) > 0.1
    torch.testing.assert_close(rope.unrotate(turned, FIRST), x, rtol=0, atol=1e-12)


def test_the_mean_rotation_is_the_average_of_single_ones(model: Any, family: str) -> None:
    x = some(16)
    matrix = Geometry.of(model).rope.mean_rotation(FIRST, COUNT, x)
    each = rotated(model, family, x.expand(1, 1, COUNT, 16), FIRST)
    torch.testing.assert_close(matrix @ x, each.mean(2)[0, 0], rtol=0, atol=1e-12)


def test_a_head_turned_in_part(partial_model: Any) -> None:
    rope, x = Rope(decoder_of(partial_model).rotary_emb), some(2, 3, COUNT, 16)
    turning = x[..., :8]
    turned = torch.cat((rotated(partial_model, "phi", turning, FIRST), x[..., 8:]), -1)
    torch.testing.assert_close(rope.unrotate(turned, FIRST), x, rtol=0, atol=1e-12)
    matrix = rope.mean_rotation(FIRST, COUNT, x)
    assert matrix.shape == (16, 16)
    assert torch.equal(matrix[8:, 8:], torch.eye(8, dtype=torch.float64))
    assert not matrix[:8, 8:].any()
    assert not matrix[8:, :8].any()
    single = torch.stack([rope.mean_rotation(FIRST + i, 1, x) for i in range(COUNT)])
    torch.testing.assert_close(matrix, single.mean(0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_formats_are_unrotated_in_float32(dtype: torch.dtype, tiny_model: Callable[..., Any]) -> None:
    rope = Geometry.of(tiny_model("llama", torch.float32)).rope
    x = some(1, 2, COUNT, 16, dtype=dtype)
    back = rope.unrotate(x, FIRST)
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, rope.unrotate(x.float(), FIRST), rtol=0, atol=0)
