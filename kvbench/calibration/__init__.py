"""Artefacts that methods need of a model, made once and kept as safetensors by weight hash and text hash.

A method names what its layers read (:attr:`kvbench.methods.method.Method.artefacts`); each kind of artefact is one
module here with three functions:

    makes(name) -> bool                     whether the name is of this kind
    provide(names, source) -> Artefacts     the tensors, one a layer
    stand_in(name, shape) -> Tensor | None  one of the same size without a model; ``None`` where only a calibration can tell
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.cache import Artefacts, Geometry
    from kvbench.calibration.source import Stage
    from kvbench.models.shape import Shape

KINDS = ("bases", "surrogate_weights")
"""Modules of this package, one a kind of artefact."""


def provide(
    names: Iterable[str], model: object, geometry: Geometry, tokens: Tensor, *, weights_hash: str | None, folder: Path | None, stage: Stage,
    tokenizer: Any | None = None,
) -> Artefacts:  # fmt: skip
    """Everything that is asked for by name, one tensor a layer.

    Args:
        names: Any number of artefact names, of any kinds.
        model: Uses kvbench's attention. geometry: Read off it. tokens: Calibration text ``[n]``.
        weights_hash, folder: Where a former calibration of the same weights and text lies; ``None`` keeps nothing.
        stage: Told (what, done, total). tokenizer: The model's, for calibrations that put words of their own between the text's.

    Raises:
        ModelError: a kept calibration is of other weights or cannot be read.
        ValueError: no kind makes a name.
    """
    from kvbench.calibration.source import Source

    source = Source(model, geometry, tokens.to(geometry.devices[0]), weights_hash, folder, stage, tokenizer)
    wanted: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        wanted.setdefault(_kind_of(name), []).append(name)
    found: dict[str, Any] = {}
    for kind, mine in wanted.items():
        found |= _module(kind).provide(mine, source)
    return found


def digests(artefacts: Artefacts) -> dict[str, str]:
    """A short hash of each artefact over all layers, so that a result says which calibration it rests on."""
    import hashlib

    found = {}
    for name, tensors in sorted(artefacts.items()):
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        found[name] = digest.hexdigest()[:12]
    return found


def stand_ins(names: Iterable[str], shape: Shape) -> dict[str, Tensor] | None:
    """Tensors of the right sizes for one layer, or ``None`` where sizes follow from the calibration itself."""
    made = {name: _module(_kind_of(name)).stand_in(name, shape) for name in names}
    return None if any(tensor is None for tensor in made.values()) else made


def _kind_of(name: str) -> str:
    for kind in KINDS:
        if _module(kind).makes(name):
            return kind
    raise ValueError(f"no calibration makes '{name}'")


def _module(kind: str) -> Any:
    return import_module(f"kvbench.calibration.{kind}")
