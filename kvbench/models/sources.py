"""Where a model's files are: the embedded model's folder, a local folder, a ``.gguf`` file, or a hub snapshot."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench.errors import ModelError
from kvbench.models import embedded, store
from kvbench.models.checkpoint import config_hash, weight_files
from kvbench.models.gguf import gguf_config
from kvbench.models.gguf.cached import converted
from kvbench.models.gguf.early import check_gguf, is_gguf
from kvbench.models.weights import Progress
from kvbench.spec import ModelSpec

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_AS_DATA = {"local_files_only": True, "trust_remote_code": False}
"""Code that a checkpoint brings is not run, and nobody is asked whether it should be."""
_IGNORED = ("consolidated*", "original/*", "onnx/*", "*.pth")


@dataclass(frozen=True)
class Source:
    """Files of one model on this machine.

    Attributes:
        folder: Where config, tokenizer and safetensors are; of a ``.gguf`` file that is not converted yet, its own folder.
        gguf: The ``.gguf`` file that the folder was, or will be, converted from.
        revision: The hub's commit, or ``None``.
    """

    folder: Path
    gguf: Path | None = None
    revision: str | None = None

    @property
    def weights(self) -> Path:
        """The folder, or the ``.gguf`` file itself: what the hash of the weights is of."""
        return self.gguf or self.folder

    @property
    def config_hash(self) -> str | None:
        """Of what ``config.json`` says; none where it was made from a ``.gguf`` file, whose own hash says it all."""
        return None if self.gguf or (self.folder / store.MARKER).is_file() else config_hash(self.folder)

    def load_config(self) -> Any:
        """The config; of a ``.gguf`` file from its header alone."""
        from transformers import AutoConfig

        if self.gguf:
            return AutoConfig.for_model(**gguf_config(self.gguf))
        with self._own_code("config.json"):
            return AutoConfig.from_pretrained(self.folder, **_AS_DATA)

    def load_tokenizer(self) -> Any:
        """The tokenizer; of a ``.gguf`` file as the file says, whatever this transformers makes of the family."""
        if self.gguf and self.folder == self.gguf.parent:
            from kvbench.models.gguf.header_reading import read_header
            from kvbench.models.gguf.tokenizer import read_tokenizer

            return read_tokenizer(read_header(self.gguf))
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        kind = PreTrainedTokenizerFast if self.gguf else AutoTokenizer
        with self._own_code("tokenizer_config.json"):
            return kind.from_pretrained(self.folder, **_AS_DATA)

    def load_model(self, *, dtype: Any, device_map: Any) -> tuple[Any, dict[str, Any]]:
        """The model, and what loading it found missing, unexpected or of another shape: the caller refuses those."""
        from transformers import AutoModelForCausalLM

        with self._own_code("config.json"):
            how = {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}  # they are reported, by name
            model, report = AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype, device_map=device_map, **how, **_AS_DATA)
        return model, report if isinstance(report, dict) else vars(report)

    @contextmanager
    def _own_code(self, file: str) -> Iterator[None]:
        """What cannot be loaded without running the checkpoint's own code is refused by name."""
        try:
            yield
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            text = f"'{self.folder / file}' asks for Python code of its own (auto_map), and kvbench runs none that comes with a model"
            raise ModelError(text, hint="use a checkpoint that transformers loads with its own classes") from error


def find_source(spec: ModelSpec, progress: Progress, *, weights: bool = True) -> Source:
    """Find a model's files, fetching them if they are not here; a ``.gguf`` file is converted once.

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
    if weights and source.gguf:
        return Source(converted(source.gguf, progress), gguf=source.gguf)
    if weights:
        weight_files(source.weights)  # refuses what holds none
    return source


def local_source(spec: ModelSpec) -> Source | None:
    """What of the model is already here, without touching the network; ``None`` if nothing is."""
    try:
        return here(spec)
    except ModelError:
        return None


def here(spec: ModelSpec) -> Source | None:
    """As :func:`local_source`, but what names a place is refused where nothing is.

    Raises:
        ModelError: no such folder or file, or it is broken.
    """
    if spec.id.startswith(embedded.PREFIX):
        folder = embedded.ready_folder(embedded.find(spec.id))
        return Source(folder) if folder else None
    return _local_path(spec.id) or _cached_snapshot(spec)


def _local_path(name: str) -> Source | None:
    """A folder or ``.gguf`` file, or ``None`` where ``name`` reads as a hub id."""
    path = Path(name).expanduser()
    if is_gguf(path):
        if not path.is_file():
            raise ModelError(f"there is no file '{name}'", hint="check --model")
        check_gguf(path)  # from the header alone, before anything heavy is imported
        return Source(path.parent, gguf=path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"folder '{name}' holds no config.json", hint="name a folder saved by save_pretrained, or a .gguf file")
        return Source(path)
    if path.is_absolute() or name.startswith((".", "~")) or not _HUB_ID.fullmatch(name):
        raise ModelError(f"there is no folder '{name}', and it is no hub id", hint="use OWNER/NAME, a folder, or a .gguf file")
    return None


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
