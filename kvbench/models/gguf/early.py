"""Refusals that need no worker: what the header of a ``.gguf`` file already says."""

from __future__ import annotations

from pathlib import Path

from kvbench.models.gguf.config import config_of
from kvbench.models.gguf.header_reading import read_header
from kvbench.models.gguf.tokenizer import check_tokenizer
from kvbench.models.shape import check_supported
from kvbench.spec import ModelSpec


def is_gguf(path: Path) -> bool:
    """Whether a path reads as that of a GGUF file."""
    return path.suffix.lower() == ".gguf"


def refuse_early(spec: ModelSpec) -> None:
    """Refuse a ``.gguf`` file for what its header says, before a run's folder is made or torch is imported.

    Raises:
        ModelError: as :func:`check_gguf`.
    """
    path = Path(spec.id).expanduser()
    if is_gguf(path) and path.is_file():
        check_gguf(path)


def check_gguf(path: Path) -> None:
    """Refuse a ``.gguf`` file for what its header says of model and tokenizer.

    Raises:
        ModelError: it is damaged, or something in it is not understood; named.
        UnsupportedModel: its attention would be measured wrongly.
    """
    header = read_header(path)
    check_supported(config_of(header))
    check_tokenizer(header)
