"""Bases of the values: leading eigenvectors of their second moment, and a seeded random control."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvbench.caches.cache import Artefacts, capture_cache, captured, decoder_of
from kvbench.caches.needs import Needs
from kvbench.errors import ModelError

if TYPE_CHECKING:
    from kvbench.caches.cache import Geometry

WINDOW = 512
Stage = Callable[[str, int, int], None]


def value_bases(
    model: object, geometry: Geometry, tokens: Tensor, *, weights_hash: str | None, folder: Path | None, stage: Stage
) -> Artefacts:
    """``value_pca`` and ``value_random``: per layer ``[Hkv, D, D]``, orthonormal columns, most variance first.

    Args:
        model: Uses kvbench's attention. geometry: Read off it. tokens: Calibration text ``[n]``.
        weights_hash, folder: Where a former calibration of the same weights and text lies; ``None`` keeps nothing.
        stage: Told (what, done, total).

    Raises:
        ModelError: a kept calibration is of other weights or broken.
    """
    file = None
    if folder is not None and weights_hash is not None:
        text = hashlib.sha256(tokens.cpu().numpy().tobytes()).hexdigest()[:12]
        file = folder / f"value-pca-{weights_hash[:16]}-{text}.safetensors"
    stacked = _load(file, weights_hash, geometry) if file is not None and file.exists() else None
    if stacked is None:
        stacked = _fit(model, geometry, tokens, stage)
        if file is not None:
            _save(file, stacked, weights_hash or "")
    pca = [basis.to(geometry.dtype) for basis in stacked]
    return {"value_pca": pca, "value_random": [_random(geometry, i, b.device) for i, b in enumerate(stacked)]}


@torch.inference_mode()
def _fit(model: object, geometry: Geometry, tokens: Tensor, stage: Stage) -> list[Tensor]:
    moments: list[Tensor] = []
    windows = [tokens[i * WINDOW : (i + 1) * WINDOW] for i in range(max(1, len(tokens) // WINDOW))]
    for done, window in enumerate(windows):
        stage("calibrating value bases", done, len(windows))
        cache = capture_cache(geometry, Needs())
        decoder_of(model)(input_ids=window[None], past_key_values=cache, use_cache=True)
        outer = [(v := view.values[0].double()).transpose(1, 2) @ v for view in captured(cache)]  # [Hkv, D, D]
        moments = outer if not moments else [a + b for a, b in zip(moments, outer, strict=True)]
    stage("calibrating value bases", len(windows), len(windows))
    return [torch.linalg.eigh(m).eigenvectors.flip(-1).contiguous() for m in moments]


def _random(geometry: Geometry, layer: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(layer)
    draw = torch.randn(geometry.kv_heads, geometry.head_dim, geometry.head_dim, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(draw)[0]
    return basis.to(geometry.dtype).to(device)


def _save(file: Path, bases: list[Tensor], weights_hash: str) -> None:
    from safetensors.torch import save

    from kvbench.weights import write_atomically

    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"layer.{i}": basis.float().cpu().contiguous() for i, basis in enumerate(bases)}
    write_atomically(file, save(tensors, metadata={"weights_hash": weights_hash}))


def _load(file: Path, weights_hash: str | None, geometry: Geometry) -> list[Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as held:
            if (held.metadata() or {}).get("weights_hash") != weights_hash:
                raise ModelError(f"calibration {file} was made for other weights", hint=f"delete {file} and run again")
            return [held.get_tensor(f"layer.{i}").to(geometry.devices[i]) for i in range(geometry.layers)]
    except (SafetensorError, OSError) as error:
        raise ModelError(f"calibration {file} cannot be read: {error}", hint=f"delete {file} and run again") from error
