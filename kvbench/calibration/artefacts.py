"""Artefact files: safetensors that name the weights they were made for. Anything else is refused, pickles above all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from kvbench.errors import ModelError

WEIGHTS = "weights_hash"


def save_tensors(file: Path, tensors: Mapping[str, Tensor], weights_hash: str) -> None:
    """Write ``tensors`` whole or not at all, with the hash of the weights they belong to."""
    from safetensors.torch import save

    from kvbench.models.weights import write_atomically

    held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(file, save(held, metadata={WEIGHTS: weights_hash}))


def load_tensors(file: Path, weights_hash: str | None, *, hint: str = "") -> dict[str, Tensor]:
    """Tensors of ``file``, on the CPU.

    Args:
        file: A safetensors file. weights_hash: What its metadata must name; ``None`` asks nothing.
        hint: The next command to try; by default to delete the file.

    Raises:
        ModelError: it is of other weights, a pickle, or broken.
    """
    from safetensors import SafetensorError, safe_open

    then = hint or f"delete {file} and run again"
    try:
        _refuse_other_kinds(file, then)
        with safe_open(file, "pt") as held:
            if weights_hash is not None and (held.metadata() or {}).get(WEIGHTS) != weights_hash:
                raise ModelError(f"calibration {file} was made for other weights", hint=then)
            return {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"calibration {file} cannot be read: {error}", hint=then) from error


def _refuse_other_kinds(file: Path, hint: str) -> None:
    """By first bytes and by name, before anything parses the file."""
    with file.open("rb") as stream:
        start = stream.read(9)
    if _is_pickle(start):
        raise ModelError(f"calibration {file} is a pickle, which can run code as it loads; only safetensors are read", hint=hint)
    if file.suffix != ".safetensors":
        raise ModelError(f"calibration {file} is not a .safetensors file, and nothing else is read", hint=hint)


def _is_pickle(start: bytes) -> bool:
    """``torch.save`` writes a zip, ``pickle.dump`` a protocol number first; safetensors have a JSON header at byte 8."""
    return start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[8:] != b"{")
