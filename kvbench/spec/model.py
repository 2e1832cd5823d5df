"""Which model is asked for, and in which numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

DTypeName = Literal["auto", "float16", "bfloat16", "float32", "float64"]


@dataclass(frozen=True)
class ModelSpec:
    """Which model, in which numbers, on which device.

    Attributes:
        id: ``embedded:smollm2``, a hub id (``Qwen/Qwen2.5-7B``), a local folder, or a ``.gguf`` file.
        dtype: Number format of weights and activations; ``auto`` is the checkpoint's own (float32 on CPU).
        cache_dtype: Number format of the uncompressed cache; ``auto`` is 16 bit on every device, as deployed caches are: that of
            ``dtype`` where it has 16 bit, else the checkpoint's own, else bfloat16 (:func:`auto_cache_dtype`).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        device_map: ``auto`` spreads one model over several GPUs; ``None`` keeps it on ``device``.
        random_weights: Build the model from ``config`` alone; quality evaluators refuse.
        config: A ``transformers`` config (with ``model_type``), so that random weights need no hub.
        revision: Hub revision, or ``None``.
    """

    id: str = "embedded:smollm2"
    dtype: DTypeName = "auto"
    cache_dtype: DTypeName = "auto"
    device: str = "auto"
    device_map: str | None = None
    random_weights: bool = False
    config: dict[str, Any] | None = None
    revision: str | None = None


HALF: tuple[DTypeName, ...] = ("bfloat16", "float16")


def auto_cache_dtype(dtype: str, config: Mapping[str, Any]) -> str:
    """The 16-bit format that an uncompressed cache has where none is asked for.

    Args:
        dtype: Format of weights and activations. config: The model's, whose ``dtype`` (``torch_dtype``) is the checkpoint's own.
    """
    own = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    return next((name for name in (dtype, own) if name in HALF), HALF[0])
