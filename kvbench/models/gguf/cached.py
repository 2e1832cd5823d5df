"""GGUF files that a user names, converted once into the cache folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvbench.models import store
from kvbench.models.gguf.convert import LAYOUT, convert, converted_size
from kvbench.models.gguf.early import check_gguf
from kvbench.models.gguf.header_reading import read_header
from kvbench.models.weights import Progress, cache_folder, hash_weights


def converted(gguf: Path, progress: Progress) -> Path:
    """The folder of safetensors that a ``.gguf`` file was converted to, made if this machine has it not yet.

    It is named by the file's content, so a file that moves is not converted again, and one that changes is.

    Raises:
        ModelError: the file is damaged, or something in it is not understood; before anything is hashed.
        ResourceError: the cache folder cannot be written, or is too full.
    """
    check_gguf(gguf)
    header = read_header(gguf)
    try:
        digest = hash_weights(gguf, progress)
    except OSError as error:
        raise store.unwritable(error) from error
    name = re.sub(r"[^\w.-]+", "-", gguf.stem)[:60]

    def build(work: Path) -> tuple[Path, Mapping[str, Any]]:
        size = converted_size(header)
        stage = f"converting {gguf.name} to {size / 1e9:.1f} GB in the cache folder"
        progress(stage, 0, size)
        convert(gguf, work / "converted", lambda done, total: progress(stage, done, total))
        return work / "converted", {}

    folder = cache_folder() / "models" / f"{name}-{digest[:12]}-{LAYOUT}"
    return store.ensure(folder, {"gguf_sha256": digest}, build)
