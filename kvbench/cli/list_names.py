"""``kvbench list methods|evaluators|presets|corpora``."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from typing import TYPE_CHECKING, Any

import click
import orjson

from kvbench.displays.streams import put

if TYPE_CHECKING:
    from kvbench.spec.registry import Registry

UNUSABLE = "cannot be used"
"""The family of plug-ins that are broken."""
KINDS = ("methods", "evaluators", "presets", "corpora")


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def list_names(kind: str, form: str) -> None:
    """List what can be named: methods, evaluators (and suites of them) with their parameters, presets, corpora."""
    readers: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "methods": _methods,
        "evaluators": _evaluators,
        "presets": _presets,
        "corpora": _corpora,
    }
    entries = readers[kind]()
    if form == "json":
        put(orjson.dumps(entries, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())
    else:
        put(_text(entries))


def _methods() -> list[dict[str, Any]]:
    from kvbench.methods.registered import METHODS, facts

    order = {"reference": 0}
    found = sorted(map(facts, METHODS.usable().values()), key=lambda m: (order.get(m["family"], 1), m["family"], m["name"]))
    return [*({**m, "parameters": _parameters(m["parameters"])} for m in found), *_broken(METHODS)]


def _broken(registry: Registry[Any]) -> list[dict[str, Any]]:
    """One line for each plug-in that cannot be used."""
    return [
        {"name": broken.name, "title": f"{broken.why}  [{broken.source}]", "family": UNUSABLE, "parameters": [], "error": broken.why}
        for broken in registry.broken()
    ]


def _evaluators() -> list[dict[str, Any]]:
    from kvbench.evaluators.base import facts
    from kvbench.evaluators.registered import EVALUATORS
    from kvbench.spec.suites import SUITES, TITLES, members

    suites = [
        {"name": name, "title": TITLES[name], "family": "suites", "parameters": [], "evaluators": [m.label for m in members(name)]}
        for name in SUITES
    ]
    found = [{**e, "family": "evaluators", "parameters": _parameters(e["parameters"])} for e in map(facts, EVALUATORS.usable().values())]
    return [*suites, *found, *_broken(EVALUATORS)]


def _presets() -> list[dict[str, Any]]:
    from kvbench.spec import presets

    return [{"name": name, "title": presets.describe(name)} for name in presets.names()]


def _corpora() -> list[dict[str, Any]]:
    from kvbench.texts.corpora import CORPORA

    return [{"name": name, "title": corpus.title} for name, corpus in CORPORA.items()]


def _parameters(found: Sequence[tuple[str, Any, str]]) -> list[dict[str, Any]]:
    return [{"name": name, "default": None if default is MISSING else default, "meaning": meaning} for name, default, meaning in found]


def _text(entries: Sequence[dict[str, Any]]) -> str:
    """A heading for each family, a line for each name, and its parameters under it."""
    width = max((len(e["name"]) for e in entries), default=0)
    lines: list[str] = []
    family = None
    for entry in entries:
        if entry.get("family") != family:
            family = entry.get("family")
            lines += ["", str(family).upper()] if lines else [str(family).upper()]
        paper = f"  ({entry['paper']})" if entry.get("paper") else ""
        indent = " " * (width + 4)
        lines += textwrap.wrap(f"  {entry['name']:<{width}}  {entry['title']}{paper}", 120, subsequent_indent=indent)
        if entry.get("evaluators"):
            lines += textwrap.wrap(",".join(entry["evaluators"]).replace(",", ", "), 120, initial_indent=indent, subsequent_indent=indent)
        for p in entry.get("parameters", ()):
            text = f"{p['name']}={_shown(p['default'])}" + (f"  {p['meaning']}" if p["meaning"] else "")
            lines += textwrap.wrap(text, 120, initial_indent=indent, subsequent_indent=indent + "  ")
        if entry.get("budget"):
            lines.append(f"{indent}--budget turns {', '.join(entry['budget'])}")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else "none" if value is None else str(value)
