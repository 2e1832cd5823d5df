"""Presets: TOML files that hold a whole question, and the flags that change it.

A preset's keys are those of :class:`~kvbench.spec.RunSpec`, with ``methods`` and ``evals`` as text (a comma list, ``all``, or
an array of texts), tables ``[model]`` and ``[corpus]``, and a ``description``. In ``[model.config]`` the text ``"none"``
stands for null, which TOML lacks.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from kvbench.errors import PresetError, UnknownName, UsageError, nearest
from kvbench.files import read_text
from kvbench.spec import CorpusSpec, ModelSpec, RunSpec, split_list

DEFAULT = "smollm2"
TABLES: Mapping[str, type[Any]] = {"model": ModelSpec, "corpus": CorpusSpec}
HOW = ("dtype", "cache_dtype", "device")
"""Keys of ``[model]`` that say how a model is run, whichever it is."""
LISTS = {"methods": "methods", "evals": "evaluators"}
"""Preset keys whose text names registered things, and the ``RunSpec`` fields they fill."""

_PLAIN = {f.name for f in fields(RunSpec)} - {"preset", "sweep", "notes", *TABLES, *LISTS.values()}
_KEYS = {"description", *_PLAIN, *TABLES, *LISTS}
_LINE = re.compile(r"line (\d+)")


def names() -> list[str]:
    """The presets that come with kvbench, the default first."""
    found = sorted(path.stem for path in folder().glob("*.toml"))
    return sorted(found, key=lambda name: name != DEFAULT)


def folder() -> Path:
    """Where they are: beside the package's modules when installed, in the repository's ``presets`` otherwise."""
    package = Path(__file__).parents[1]
    installed = package / "_presets"
    return installed if installed.is_dir() else package.parent / "presets"


def describe(name: str) -> str:
    """A preset's one line."""
    return str(read_preset(name).get("description", ""))


def read_preset(name: str) -> dict[str, Any]:
    """Read and check a preset.

    Args:
        name: One of :func:`names`, or a path to a ``.toml`` file.

    Returns:
        The file's content as nested plain values, with the preset's own name under ``preset``.

    Raises:
        UsageError: no such preset or file.
        PresetError: not TOML, an unknown key, a value of the wrong kind or that no run can have; names file, line and the nearest key.
    """
    path = _path(name)
    try:
        text = read_text(path)
        preset = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of thousands of digits, or nested too deep
        raise PresetError(f"preset {_where(path, _error_line(error))} is not TOML: {error}", hint="correct the file") from error
    except OSError as error:
        raise PresetError(f"preset '{path.name}' cannot be read: {error.strerror or error}", hint="kvbench list presets") from error
    _check_keys(path, text, preset, _KEYS, "")
    for table, cls in TABLES.items():
        if table in preset:
            _check_table(path, text, table, preset[table], cls)
    _check_values(path, text, preset)
    found = {**preset, "preset": path.stem}
    _check_ranges(path, found)
    return found


def _check_ranges(path: Path, preset: Mapping[str, Any]) -> None:
    """What no run can have is the file's fault, before any flag goes over it."""
    sizes = {key: value for key, value in to_spec(preset, {}).items() if key not in LISTS.values()}
    try:
        RunSpec(**sizes).validate()
    except UsageError as error:
        raise PresetError(f"preset '{path.name}': {error.message}", hint="correct the file") from error


def to_spec(preset: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``RunSpec`` from a preset and the flags that were given.

    Args:
        preset: From :func:`read_preset`.
        overrides: The same nesting as a preset; ``None`` means "not given". A different ``model.id`` takes the place of what
            the preset's ``[model]`` table says of its own model; number formats and device stay.

    Returns:
        Keyword arguments; ``methods`` and ``evaluators`` stay lists of texts, to be expanded and parsed by the caller.
    """
    given = {table: _given(overrides.get(table) or {}) for table in TABLES}
    base = {table: dict(preset.get(table) or {}) for table in TABLES}
    if given["model"].get("id", base["model"].get("id")) != base["model"].get("id"):
        base["model"] = {key: value for key, value in base["model"].items() if key in HOW}
    spec: dict[str, Any] = {"preset": preset.get("preset")}
    for table, cls in TABLES.items():
        spec[table] = msgspec.convert(_nulls({**base[table], **given[table]}), cls)
    flat = {**preset, **_given(overrides)}
    spec |= {key: flat[key] for key in _PLAIN if key in flat}
    spec |= {field: _texts(flat[key]) for key, field in LISTS.items() if key in flat}
    return spec


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _nulls(table: dict[str, Any]) -> dict[str, Any]:
    """A ``[model]`` table whose config has ``None`` where the file says ``"none"``."""
    config = table.get("config")
    if config is None:
        return table
    return {**table, "config": {key: None if value == "none" else value for key, value in config.items()}}


def _texts(value: str | list[str] | tuple[str, ...]) -> list[str]:
    return split_list(value) if isinstance(value, str) else list(value)


def _path(name: str) -> Path:
    if name.endswith(".toml"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UsageError(f"there is no preset file '{name}'", hint="kvbench list presets")
        return path
    if name not in names():
        raise UnknownName("preset", name, names(), hint="kvbench list presets, or name a .toml file")
    return folder() / f"{name}.toml"


def _check_keys(path: Path, text: str, table: Mapping[str, Any], known: set[str], name: str) -> None:
    for key in table:
        if key not in known:
            near = nearest(key, known)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            inside = f" in [{name}]" if name else ""
            place = _where(path, _line_of(text, key, name))
            raise PresetError(f"preset {place} has an unknown key '{key}'{inside}{meant}", hint=f"known keys: {', '.join(sorted(known))}")


def _check_table(path: Path, text: str, name: str, table: Any, cls: type[Any]) -> None:
    if not isinstance(table, dict):
        raise PresetError(f"preset {_where(path, _line_of(text, name, ''))}: '{name}' must be a table", hint=f"write [{name}]")
    _check_keys(path, text, table, {f.name for f in fields(cls)}, name)
    try:
        msgspec.convert(_nulls(table), cls)
    except msgspec.ValidationError as error:
        raise _wrong_value(path, text, error, name) from error
    config = table.get("config")
    if config is not None and not isinstance(config.get("model_type"), str):
        raise PresetError(f"preset {_where(path, _line_of(text, 'model_type', 'model.config'))} has no model_type in [model.config]")


def _check_values(path: Path, text: str, preset: Mapping[str, Any]) -> None:
    """The values outside tables, by ``RunSpec``'s own kinds."""
    plain = {key: preset[key] for key in _PLAIN if key in preset}
    try:
        msgspec.convert(plain, RunSpec)
    except msgspec.ValidationError as error:
        raise _wrong_value(path, text, error, "") from error
    for key in LISTS:
        value = preset.get(key, "")
        if not (isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))):
            raise PresetError(f"preset {_where(path, _line_of(text, key, ''))}: '{key}' must be text or an array of texts")


def _wrong_value(path: Path, text: str, error: msgspec.ValidationError, table: str) -> PresetError:
    """msgspec ends its message with the path of the value, such as ``$.samples``."""
    reason, _, place = str(error).partition(" - at `$.")
    key = place.rstrip("`").split(".")[0].split("[")[0]
    inside = f" in [{table}]" if table else ""
    return PresetError(f"preset {_where(path, _line_of(text, key, table))}: '{key}'{inside}: {reason}", hint="correct the file")


def _error_line(error: Exception) -> int | None:
    found = _LINE.search(str(error))
    return int(found[1]) if found else None


def _where(path: Path, line: int | None) -> str:
    return f"{path.name}:{line}" if line else f"'{path.name}'"


def _line_of(text: str, key: str, table: str) -> int | None:
    """The line on which ``key`` stands in ``[table]``: tomllib keeps no positions."""
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        header = re.match(r"\[\s*([^\[\]]+?)\s*\]", stripped)
        if header:
            current = header[1]
            if current in (key, f"{table}.{key}"):
                return number
        elif current == table and re.match(rf"[\"']?{re.escape(key)}[\"']?\s*[=.]", stripped):
            return number
    return None
