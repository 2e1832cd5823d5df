"""``kvbench list methods|evaluators|presets|corpora``."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any

import click
import orjson

from kvbench.displays.streams import put

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
    from kvbench.methods.base import METHODS

    found = [(name, METHODS.load(name)) for name in METHODS.names()]
    order = {"reference": 0}
    return [
        {
            "name": name,
            "title": m.title,
            "family": m.family,
            "paper": m.paper,
            "parameters": _parameters(m.parameters()),
            "budget": list(m.dial.parameters) if m.dial else [],
        }
        for name, m in sorted(found, key=lambda pair: (order.get(pair[1].family, 1), pair[1].family, pair[0]))
    ]


def _evaluators() -> list[dict[str, Any]]:
    from kvbench.suites import SUITES, TITLES, members
    from kvbench.summary import EVALUATORS

    found = [(name, EVALUATORS.load(name)) for name in EVALUATORS.names()]
    suites = [
        {"name": name, "title": TITLES[name], "family": "suites", "parameters": [], "evaluators": [m.label for m in members(name)]}
        for name in SUITES
    ]
    return suites + [
        {
            "name": name,
            "title": e.title,
            "family": "evaluators",
            "protocols": list(e.protocols),
            "needs_text": e.needs_text,
            "needs_weights": e.needs_weights,
            "parameters": _parameters([(f.name, f.default, f.metadata.get("meaning", "")) for f in fields(e) if f.init]),
        }
        for name, e in found
    ]


def _presets() -> list[dict[str, Any]]:
    from kvbench import presets

    return [{"name": name, "title": presets.describe(name)} for name in presets.names()]


def _corpora() -> list[dict[str, Any]]:
    from kvbench.corpora import CORPORA

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
