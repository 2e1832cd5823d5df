"""A package for a method of one's own, made from ``templates/``. No torch here.

It is an installable package with one method that works as it stands; its entry point is all that kvbench looks for.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

from kvbench.errors import UsageError
from kvbench.methods.base import METHODS

GUIDE = Path(__file__).parent / "docs" / "adding_a_method.md"
"""The page that goes on from here."""
TEMPLATES = Path(__file__).parent / "templates"
FILES = {
    "pyproject.toml.in": "pyproject.toml",
    "README.md.in": "README.md",
    "package.py.in": "$package/__init__.py",
    "method.py.in": "$package/$name.py",
    "test_method.py.in": "tests/test_$name.py",
}
"""Template → the file that it becomes."""
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")  # an identifier that is a good name of a package, too


def default_folder(name: str) -> Path:
    """Where the package of ``name`` is written unless told: a folder named as the distribution."""
    return Path(f"kvbench-{name.replace('_', '-')}")


def write_package(name: str, folder: Path | None = None) -> list[Path]:
    """Write the package of a method ``name``: all of it, or nothing.

    Args:
        name: Lower case, registered by no package yet.
        folder: To be made, in one that exists. ``None``: :func:`default_folder`, here.

    Returns:
        The files written.

    Raises:
        UsageError: a name that cannot be or is taken, a folder that is there already, or a place that cannot be written to.
    """
    check_name(name)
    folder = default_folder(name) if folder is None else folder
    _check_place(name, folder)
    words = _words(name)
    texts = {Template(path).substitute(words): Template(_read(source)).substitute(words) for source, path in FILES.items()}
    try:
        _write(texts, folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}", hint=_elsewhere(name, folder)) from error
    return [folder / path for path in texts]


def check_name(name: str) -> None:
    """Refuse a name that no method can have, or that one has already.

    Raises:
        UsageError: with one that is free.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        what = "it must be lower-case letters, digits and single _, beginning with a letter, and no word of Python's"
        raise UsageError(f"'{name}' is no name for a method: {what}", hint=f"kvbench new-method {_near(name)}")
    if name == "all":
        raise UsageError("'all' stands for every method", hint="kvbench new-method my_score")
    if name in METHODS.names():
        raise UsageError(f"method '{name}' is there already", hint=f"kvbench new-method {_near(name)}  # taken: kvbench list methods")


def _near(name: str) -> str:
    """``KeyNorm-2`` → ``key_norm_2``; with ``my_`` before what would still not do."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    near = "_".join(re.findall(r"[a-z0-9]+", split)) or "score"
    while not _NAME.fullmatch(near) or keyword.iskeyword(near) or near == "all" or near in METHODS.names():
        near = f"my_{near}"
    return near


def _check_place(name: str, folder: Path) -> None:
    if folder.is_symlink() or folder.exists():
        raise UsageError(f"{folder} is there already; nothing was written", hint=_elsewhere(name, folder))
    if not folder.parent.is_dir():
        raise UsageError(f"--folder {folder}: there is no folder {folder.parent}", hint=f"mkdir -p {folder.parent}")


def _elsewhere(name: str, folder: Path) -> str:
    return f"kvbench new-method {name} --folder {folder.with_name(folder.name + '-2') if folder.name else default_folder(name)}"


def _words(name: str) -> dict[str, str]:
    """What the templates leave open."""
    import kvbench

    return {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "method": _class_name(name),
        "package": f"kvbench_{name}",
        "project": default_folder(name).name,
        "version": kvbench.__version__,
    }


def _class_name(name: str) -> str:
    """``key_norm`` → ``KeyNorm``; ``eviction`` → ``EvictionScore``, since the templates have an ``Eviction`` of their own."""
    camel = "".join(part.capitalize() for part in name.split("_"))
    used = {word for source in FILES for word in re.findall(r"\w+", _read(source))}
    return f"{camel}Score" if camel in used or keyword.iskeyword(camel) else camel


def _read(template: str) -> str:
    return (TEMPLATES / template).read_text(encoding="utf-8")


def _write(texts: dict[str, str], folder: Path) -> None:
    """Write beside ``folder`` first, and move it there as the last step."""
    with TemporaryDirectory(dir=folder.parent, prefix=".kvbench-") as held:
        made = Path(held) / "package"
        for path, text in texts.items():
            target = made / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        made.rename(folder)
