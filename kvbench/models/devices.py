"""Where a model runs and in which numbers, and whether it fits there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvbench.errors import ResourceError
from kvbench.spec import ModelSpec, auto_cache_dtype

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` means here.

    Raises:
        ResourceError: there is no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ResourceError(f"'{name}' is no device", hint="use --device auto, cpu, cuda or cuda:1") from error
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if (device.index or 0) >= count:
        raise ResourceError(f"device '{name}' was asked for, and torch sees {count} GPUs", hint="use --device cpu")
    return torch.device("cuda", device.index or 0)


def named_dtype(name: str) -> torch.dtype:
    """torch's dtype of that name."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def choose_dtype(asked: str, config: Any, device: torch.device) -> torch.dtype:
    """``auto`` is float32 on a CPU and the checkpoint's own elsewhere (bfloat16 where it names none)."""
    if asked != "auto":
        return named_dtype(asked)
    if device.type == "cpu":
        return named_dtype("float32")
    own = getattr(config, "dtype", None) or "bfloat16"
    return named_dtype(str(own).removeprefix("torch."))


def choose_cache_dtype(spec: ModelSpec, config: Any, dtype: torch.dtype) -> torch.dtype:
    """What is asked for, else :func:`kvbench.spec.auto_cache_dtype`."""
    asked = spec.cache_dtype
    return named_dtype(auto_cache_dtype(str(dtype).removeprefix("torch."), config.to_dict()) if asked == "auto" else asked)


def check_memory(spec: ModelSpec, needed: int, device: torch.device) -> None:
    """Raise ``ResourceError`` where the weights alone exceed what is free."""
    import psutil
    import torch

    if device.type == "cpu":
        free, where = psutil.virtual_memory().available, "memory"
    elif spec.device_map:
        free, where = sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())), "all GPUs together"
    else:
        free, where = torch.cuda.mem_get_info(device)[0], str(device)
    if needed > free:
        text = f"the weights of '{spec.id}' need {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free on {where}"
        raise ResourceError(text, hint="use a smaller --model, --dtype bfloat16, or another --device")
