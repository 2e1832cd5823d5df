"""Refusals that need no worker: what the header of a ``.gguf`` file already says."""

from __future__ import annotations

from pathlib import Path

from kvbench.gguf.config import gguf_config
from kvbench.shape import check_supported
from kvbench.spec import ModelSpec


def refuse_early(spec: ModelSpec) -> None:
    """Refuse a ``.gguf`` file for what its header says, before a run's folder is made or torch is imported.

    Raises:
        ModelError: as :func:`kvbench.gguf.gguf_config`.
        UnsupportedModel: its attention would be measured wrongly.
    """
    path = Path(spec.id).expanduser()
    if path.suffix.lower() == ".gguf" and path.is_file():
        check_supported(gguf_config(path))
