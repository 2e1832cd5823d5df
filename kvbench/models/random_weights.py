"""Models of random weights, for what does not depend on weights: speed and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvbench.spec import ModelSpec

if TYPE_CHECKING:
    import torch


def build_random(config: Any, spec: ModelSpec, seed: int, device: torch.device, dtype: torch.dtype) -> Any:
    """Seeded random weights, built where they will be used: a large model never passes through host memory."""
    import torch
    from transformers import AutoModelForCausalLM

    gpus = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        if spec.device_map and device.type == "cuda":
            return spread_random(config, dtype)
        with device:
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def spread_random(config: Any, dtype: torch.dtype, max_memory: dict[Any, Any] | None = None) -> Any:
    """Random weights over several devices: laid out without storage, then filled part by part in place."""
    import torch
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    whole = list(model._no_split_modules or ())
    room = max_memory or get_balanced_memory(model, no_split_module_classes=whole, dtype=dtype)
    places = infer_auto_device_map(model, max_memory=room, no_split_module_classes=whole, dtype=dtype)
    for name, place in places.items():
        model.get_submodule(name).to_empty(device=place)
    model.tie_weights()
    with torch.no_grad():
        for module in model.modules():
            model._init_weights(module)
    return dispatch_model(model, device_map=places)
