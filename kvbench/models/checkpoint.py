"""Which files of a folder hold a model's weights: exactly those that transformers will read, or a refusal that names what is in the way.

Weights are safetensors. A pickle runs what it holds when it is opened, so none is read; code that a checkpoint brings is not run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from kvbench.errors import ModelError

CONFIG = "config.json"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""
_AGAIN = "fetch the checkpoint again, whole"
_INCIDENTAL = ("transformers_version", "_name_or_path")
"""Keys of a config that say who wrote it, and nothing of the model."""
CONVERT = (
    'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
    "[c.from_pretrained('{name}').save_pretrained('{name}-safetensors') for c in (M, T)]\""
)
"""Reads a pickle once, where its owner decides to, and writes a checkpoint that is data alone."""


def weight_files(path: Path) -> list[Path]:
    """The files that hold a model's weights: a ``.gguf`` itself, or the safetensors of a folder that transformers reads.

    Those are ``model.safetensors``, or else every shard that ``model.safetensors.index.json`` names; other files are no part of
    the model.

    Raises:
        ModelError: there are none, a shard is missing, or loading would read something else as well.
    """
    if path.is_file():
        return [path]
    _refuse_others(path)
    if (path / WHOLE).is_file():
        return [path / WHOLE]
    if (path / INDEX).is_file():
        return _shards(path)
    raise _nothing_in(path)


def check_whole(file: Path) -> None:
    """Refuse a safetensors file that is shorter or longer than its header says; only the header is read.

    Raises:
        ModelError: it is cut off, or no safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            head = int.from_bytes(opened.read(8), "little")
            tensors: Any = orjson.loads(opened.read(head)) if head <= min(size, _LARGEST_HEADER) else None
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    except (OSError, orjson.JSONDecodeError, AttributeError, LookupError, TypeError) as error:
        raise ModelError(f"'{file}' is no safetensors file, or a broken one", hint=_AGAIN) from error
    if size != 8 + head + max(ends, default=0):
        raise ModelError(f"'{file}' holds {size:,} bytes and its header tells of {8 + head + max(ends, default=0):,}", hint=_AGAIN)


def config_hash(folder: Path) -> str | None:
    """sha256 of what ``config.json`` says of the model: it changes numbers as weights do. ``None`` where there is none."""
    if not (folder / CONFIG).is_file():
        return None
    plain = {key: value for key, value in read_json(folder / CONFIG).items() if key not in _INCIDENTAL}
    return hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """The object that a file of a checkpoint holds.

    Raises:
        ModelError: it cannot be read, or is no JSON object.
    """
    try:
        found = orjson.loads(file.read_bytes())  # with a mark at its head transformers reads none either
    except (OSError, orjson.JSONDecodeError) as error:
        raise ModelError(f"'{file}' cannot be read: {error}", hint=_AGAIN) from error
    if not isinstance(found, dict):
        raise ModelError(f"'{file}' holds no JSON object", hint=_AGAIN)
    return found


def _refuse_others(folder: Path) -> None:
    """What makes transformers read more than the weights, or others."""
    if (folder / ADAPTER).is_file():
        hint = "merge it (peft: merge_and_unload, then save_pretrained), or take it out of the folder"
        raise ModelError(f"'{folder}' holds an adapter ({ADAPTER}), which may be loaded over the weights", hint=hint)
    if (folder / CONFIG).is_file() and "transformers_weights" in read_json(folder / CONFIG):
        raise ModelError(f"'{folder / CONFIG}' names weights of its own (transformers_weights)", hint=f"save them as {WHOLE}")


def _shards(folder: Path) -> list[Path]:
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, Mapping) or not places or not all(isinstance(name, str) and _is_inside(name) for name in places.values()):
        raise ModelError(f"'{folder / INDEX}' does not say which files hold the weights", hint=_AGAIN)
    names = sorted(set(places.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        text = f"'{folder}' lacks {len(missing)} of the {len(names)} files that {INDEX} names, first {missing[0]}"
        raise ModelError(text, hint=_AGAIN)
    return [folder / name for name in names]


def _is_inside(name: str) -> bool:
    """A safetensors file of the folder and no other place."""
    path = PurePosixPath(name)
    return name.endswith(".safetensors") and not path.is_absolute() and ".." not in path.parts


def _nothing_in(folder: Path) -> ModelError:
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern) if file.name != "training_args.bin")
    if pickles:
        text = f"'{folder}' holds its weights as a pickle ({pickles[0]}), which may run anything when it is opened, and is not read"
        return ModelError(text, hint=f"if you trust it: {CONVERT.format(name=folder)}")
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if others:
        return ModelError(f"'{folder}' holds {others[0]}, and neither {WHOLE} nor {INDEX}", hint=f"rename what is to be loaded to {WHOLE}")
    return ModelError(f"'{folder}' holds no {WHOLE}", hint="use a checkpoint saved as safetensors, or a .gguf file")
