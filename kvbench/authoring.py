"""A package for a method or an evaluator of one's own, made from ``templates/``. No torch here.

It is an installable package with one of them that works as it stands; its entry point is all that kvbench looks for.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

from kvbench import version
from kvbench.errors import UsageError
from kvbench.evaluators.registered import EVALUATORS
from kvbench.methods.registered import METHODS
from kvbench.spec.registry import Registry

DOCS = Path(__file__).parent / "docs"
GUIDE = DOCS / "adding_a_method.md"
TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")  # an identifier that is a good name of a package, too


@dataclass(frozen=True)
class Kind:
    """What can be written.

    Attributes:
        noun: ``method``. Its templates are in a folder of that name, its command is ``kvbench new-method``.
        registry: Of what is there already.
        guide: The page that goes on from here.
        example: A part of a name, where nothing better is at hand.
        suffix: What makes a class name its own that the templates use themselves.
    """

    noun: str
    registry: Registry[Any]
    guide: Path
    example: str
    suffix: str

    @property
    def command(self) -> str:
        return f"kvbench new-{self.noun}"

    @property
    def files(self) -> Mapping[str, str]:
        """Template → the file that it becomes."""
        return {
            "package/pyproject.toml.in": "pyproject.toml",
            f"{self.noun}/README.md.in": "README.md",
            "package/package.py.in": "$package/__init__.py",
            f"{self.noun}/{self.noun}.py.in": "$package/$name.py",
            f"{self.noun}/test_{self.noun}.py.in": "tests/test_$name.py",
        }


METHOD = Kind("method", METHODS, GUIDE, "score", "Score")
EVALUATOR = Kind("evaluator", EVALUATORS, DOCS / "adding_an_evaluator.md", "measure", "Measure")


def default_folder(name: str) -> Path:
    """Where the package of ``name`` is written unless told: a folder named as the distribution."""
    return Path(f"kvbench-{name.replace('_', '-')}")


def write_package(name: str, folder: Path | None = None, kind: Kind = METHOD) -> list[Path]:
    """Write the package of a method or an evaluator ``name``: all of it, or nothing.

    Args:
        name: Lower case, registered by no package yet.
        folder: To be made, in one that exists. ``None``: :func:`default_folder`, here.
        kind: Which of the two.

    Returns:
        The files written.

    Raises:
        UsageError: a name that cannot be or is taken, a folder that is there already, or a place that cannot be written to.
    """
    check_name(name, kind)
    folder = default_folder(name) if folder is None else folder
    _check_place(kind, name, folder)
    words = _words(kind, name)
    texts = {Template(path).substitute(words): Template(_read(source)).substitute(words) for source, path in kind.files.items()}
    try:
        _write(texts, folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}", hint=_elsewhere(kind, name, folder)) from error
    return [folder / path for path in texts]


def check_name(name: str, kind: Kind = METHOD) -> None:
    """Refuse a name that none of this kind can have, or that one has already.

    Raises:
        UsageError: with one that is free.
    """
    if not _is_name(name):
        what = "it must be lower-case letters, digits and single _, beginning with a letter, and no word of Python's"
        raise UsageError(f"'{name}' is no name for {_a(kind.noun)}: {what}", hint=f"{kind.command} {_near(kind, name)}")
    if name in kind.registry.reserved:
        text = f"'{name}' stands for {'every method' if kind is METHOD else 'several evaluators'}"
        raise UsageError(text, hint=f"{kind.command} my_{kind.example}")
    if name in kind.registry.names():
        hint = f"{kind.command} {_near(kind, name)}  # taken: kvbench list {kind.noun}s"
        raise UsageError(f"{kind.noun} '{name}' is there already", hint=hint)


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and not keyword.iskeyword(name)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _near(kind: Kind, name: str) -> str:
    """``KeyNorm-2`` → ``key_norm_2``; with ``my_`` before what would still not do."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    near = "_".join(re.findall(r"[a-z0-9]+", split)) or kind.example
    while not _is_name(near) or near in kind.registry.reserved or near in kind.registry.names():
        near = f"my_{near}"
    return near


def _check_place(kind: Kind, name: str, folder: Path) -> None:
    if folder.is_symlink() or folder.exists():
        raise UsageError(f"{folder} is there already; nothing was written", hint=_elsewhere(kind, name, folder))
    if not folder.parent.is_dir():
        raise UsageError(f"--folder {folder}: there is no folder {folder.parent}", hint=f"mkdir -p {folder.parent}")


def _elsewhere(kind: Kind, name: str, folder: Path) -> str:
    place = folder.with_name(folder.name + "-2") if folder.name else default_folder(name)
    return f"{kind.command} {name} --folder {place}"


def _words(kind: Kind, name: str) -> dict[str, str]:
    """What the templates leave open."""
    return {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "kind": kind.noun,
        "a_kind": _a(kind.noun),
        "cls": _class_name(kind, name),
        "package": f"kvbench_{name}",
        "project": default_folder(name).name,
        "version": version.own(),
    }


def _class_name(kind: Kind, name: str) -> str:
    """``key_norm`` → ``KeyNorm``; ``eviction`` → ``EvictionScore``, since the templates have an ``Eviction`` of their own."""
    camel = "".join(part.capitalize() for part in name.split("_"))
    used = {word for source in kind.files for word in re.findall(r"\w+", _read(source))}
    return f"{camel}{kind.suffix}" if camel in used or keyword.iskeyword(camel) else camel


def _read(template: str) -> str:
    return (TEMPLATES / template).read_text(encoding="utf-8")


def _write(texts: Mapping[str, str], folder: Path) -> None:
    """Write beside ``folder`` first, and move it there as the last step."""
    with TemporaryDirectory(dir=folder.parent, prefix=".kvbench-") as held:
        made = Path(held) / "package"
        for path, text in texts.items():
            target = made / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        made.rename(folder)
