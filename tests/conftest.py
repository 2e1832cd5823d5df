"""What several tests share: tiny seeded models, the embedded model, and the folder of real samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from kvbench.instruments.tiny import FAMILIES, make_tiny_config, make_tiny_model
from kvbench.record.collecting import keep_for_good

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # looked at when triton is first imported, which torch may do long before a kernel's test
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models lose more to waiting threads than they gain; the runner is parallel

pytest_plugins = ("limits",)

if TYPE_CHECKING:
    from kvbench.models.loading import LoadedModel


def pytest_collection_finish() -> None:
    """What is there before the first test stays to the end: the many searches for circles to come need not look through it."""
    keep_for_good()


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
def loaded_embedded_model() -> LoadedModel:
    """The embedded model in float32 on the CPU; skips where it is neither cached nor to be had."""
    from kvbench.errors import ModelError
    from kvbench.models.loading import load_model
    from kvbench.spec import ModelSpec

    try:
        return load_model(ModelSpec(dtype="float32", device="cpu"), seed=0, progress=lambda stage, done, total: None)
    except ModelError as error:
        pytest.skip(f"the embedded model is not to be had here: {error.message}")


@pytest.fixture
def embedded_model(loaded_embedded_model: LoadedModel) -> Iterator[LoadedModel]:
    """The embedded model with its own attention, whatever a test before this one, in any order, has set."""
    own = loaded_embedded_model.model.config._attn_implementation
    yield loaded_embedded_model
    loaded_embedded_model.model.set_attn_implementation(own)
