"""Where a model's files are: the embedded model's folder, a local folder, a ``.gguf`` file, or a hub snapshot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench import embedded
from kvbench.errors import ModelError
from kvbench.spec import ModelSpec
from kvbench.weights import Progress, weight_files

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_IGNORED = ("consolidated*", "original/*", "onnx/*", "*.pth")


@dataclass(frozen=True)
class Source:
    """Files of one model on this machine.

    Attributes:
        folder: Where they are.
        gguf: Name of the ``.gguf`` file in it, or ``None`` for a folder of safetensors.
        revision: The hub's commit, or ``None``.
    """

    folder: Path
    gguf: str | None = None
    revision: str | None = None

    @property
    def weights(self) -> Path:
        """The folder, or the ``.gguf`` file itself."""
        return self.folder / self.gguf if self.gguf else self.folder

    def _options(self) -> dict[str, Any]:
        return {"gguf_file": self.gguf} if self.gguf else {"local_files_only": True}

    def load_config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.folder, **self._options())

    def load_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, **self._options())

    def load_model(self, *, dtype: Any, device_map: Any) -> tuple[Any, dict[str, Any]]:
        """The model, and what loading it found missing or unexpected."""
        from transformers import AutoModelForCausalLM

        model, report = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=dtype, device_map=device_map, output_loading_info=True, **self._options()
        )
        return model, report if isinstance(report, dict) else vars(report)


def find_source(spec: ModelSpec, progress: Progress, *, weights: bool = True) -> Source:
    """Find a model's files, fetching them if they are not here.

    Args:
        spec: Which model.
        progress: Told bytes while something is fetched.
        weights: Whether the weights are wanted, or config and tokenizer are enough.

    Raises:
        ModelError: no such model, folder or file; gated; no network; nothing that holds weights.
    """
    if spec.id.startswith(embedded.PREFIX):
        return Source(embedded.ensure(spec.id, progress))
    source = _local_path(spec.id) or _snapshot(spec, progress, (*_TEXT_FILES, "*.safetensors") if weights else _TEXT_FILES)
    if weights and not weight_files(source.weights):
        raise ModelError(f"'{spec.id}' holds no .safetensors weights", hint="use a checkpoint saved as safetensors, or a .gguf file")
    return source


def local_source(spec: ModelSpec) -> Source | None:
    """What of the model is already here, without touching the network; ``None`` if nothing is."""
    try:
        if spec.id.startswith(embedded.PREFIX):
            folder = embedded.ready_folder(embedded.find(spec.id))
            return Source(folder) if folder else None
        return _local_path(spec.id) or _cached_snapshot(spec)
    except ModelError:
        return None


def _local_path(name: str) -> Source | None:
    """A folder or ``.gguf`` file, or ``None`` where ``name`` reads as a hub id."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no file '{name}'", hint="check --model")
        _check_gguf(path)
        return Source(path.parent, gguf=path.name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"folder '{name}' holds no config.json", hint="name a folder saved by save_pretrained, or a .gguf file")
        return Source(path)
    if path.is_absolute() or name.startswith((".", "~")) or not _HUB_ID.fullmatch(name):
        raise ModelError(f"there is no folder '{name}', and it is no hub id", hint="use OWNER/NAME, a folder, or a .gguf file")
    return None


def _check_gguf(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"'{path.name}' is no GGUF file, or a broken one", hint="fetch the file again")


def _cached_snapshot(spec: ModelSpec) -> Source | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(spec.id, revision=spec.revision, allow_patterns=[*_TEXT_FILES], local_files_only=True))
    except Exception:  # absent, incomplete or unreadable: all mean "not here"
        return None
    return Source(folder, revision=folder.name)


def _snapshot(spec: ModelSpec, progress: Progress, patterns: tuple[str, ...]) -> Source:
    """Fetch a hub repository; errors name the repository and what to do."""
    from huggingface_hub import errors, snapshot_download

    bar, wanted, ignored = _reporting_bar(progress, f"fetching {spec.id}"), [*patterns], [*_IGNORED]
    try:
        where = snapshot_download(spec.id, revision=spec.revision, allow_patterns=wanted, ignore_patterns=ignored, tqdm_class=bar)
    except errors.GatedRepoError as error:
        raise ModelError(f"'{spec.id}' is gated and this account has no access", hint="accept its terms, then: hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model '{spec.id}' (or it is private)", hint="check --model, or: hf auth login") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"'{spec.id}' has no revision '{spec.revision}'", hint="check the preset's revision") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, ConnectionError, OSError) as error:
        raise ModelError(
            f"'{spec.id}' is not on this machine and the hub cannot be reached",
            hint="connect and run again, name a local folder with --model, or use --random-weights",
        ) from error
    except ValueError as error:
        raise ModelError(f"'{spec.id}' is no hub id: {error}", hint="use OWNER/NAME") from error
    return Source(Path(where), revision=Path(where).name)


def _reporting_bar(progress: Progress, stage: str) -> type[Any]:
    """A progress bar class that draws nothing and reports bytes."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": False, "file": _Nowhere()})

        def update(self, n: float | None = 1) -> Any:
            shown = super().update(n)
            if self.unit == "B" and self.total:
                progress(stage, int(self.n), int(self.total))
            return shown

    return Bar


class _Nowhere:
    """A stream that keeps nothing."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        return False
