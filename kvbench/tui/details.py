"""Everything about the selected method: parameters, audit, bytes by item and by layer, its error."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from rich.style import Style
from rich.text import Text

from kvbench.errors import KvbenchError
from kvbench.formats import NONE, fixed, interval, shorten, signed, size
from kvbench.metrics.measured import NOTHING_YET
from kvbench.metrics.row import Row
from kvbench.record.state import MethodState
from kvbench.spec import BASELINE, MethodSpec, format_value
from kvbench.tui.canvas import bar, spark
from kvbench.tui.panel_facts import ledger, per_layer
from kvbench.tui.plots.scene import Scene
from kvbench.tui.theme import Palette

FEWER = "fewer bytes"
"""The check that the baseline fails by definition, so that it is not asked of it."""


def details(scene: Scene, width: int) -> Text:
    """The panel's text for the selected method, ``width`` cells wide."""
    row = next((r for r in scene.rows if r.label == scene.selected), None)
    if row is None or width < 10:
        return Text("no method is selected", scene.palette.dim)
    method = scene.state.methods[row.label]
    parts = [
        _head(row, scene, width), _error(method, scene.palette, width), _figures(row, scene.palette, width),
        _audit(method, scene.palette, width), _ledger(row, scene, width), _layers(row, scene, width),
        _parameters(row.label, scene, width),
    ]  # fmt: skip
    return Text("\n").join(part for part in parts if part)


@lru_cache(maxsize=64)
def _class_of(name: str) -> Any:
    """The method's class, ``None`` if this machine lacks its plug-in."""
    from kvbench.methods.registered import METHODS

    try:
        return METHODS.load(name)
    except KvbenchError:
        return None


def _section(title: str, palette: Palette, width: int, aside: str = "") -> Text:
    line = Text().append(f"{title} ", palette.ink("primary", bold=True))
    line.append("─" * max(0, width - len(title) - 1 - (len(aside) + 1 if aside else 0)), palette.line)
    return line.append(f" {aside}" if aside else "", palette.dim)


def _head(row: Row, scene: Scene, width: int) -> Text:
    name = MethodSpec.parse(row.label).name
    cls = _class_of(name)
    text = Text().append("● ", scene.ink(row.label)).append(row.label, Style(color=scene.colours.get(row.label), bold=True))
    if cls is not None:
        text.append(shorten(f"  {cls.title}, {cls.family}", width - 2 - len(row.label)), scene.palette.dim)
        text.append("\n" + shorten(f"  {cls.paper}", width), scene.palette.dim)
    return text


def _error(method: MethodState, palette: Palette, width: int) -> Text | None:
    if method.error is None:
        return None
    text = _section("error", palette, width, method.error_kind or "")
    return text.append(f"\n✗ {method.error}", palette.ink("error"))


def _figures(row: Row, palette: Palette, width: int) -> Text | None:
    """Whole intervals, which the table has no room for."""
    pairs = [
        ("perplexity", fixed(row.perplexity, 3), interval(row.perplexity_low, row.perplexity_high, 2, write=fixed), row.perplexity),
        ("ΔPPL", f"{signed(row.delta_pct, 2)} %", interval(row.delta_low, row.delta_high, 2), row.delta_pct),
        ("rounding", f"{fixed(row.rounding_pct, 3)} %", _rounded(row), row.rounding_pct),
        ("TTFT", f"{fixed((row.ttft_s or 0) * 1000, 1)} ms", "", row.ttft_s),
        ("decode", f"{fixed(row.tokens_per_s, 1)} tok/s", _path(row), row.other_read_path or row.roofline_fraction),
        (
            "roofline",
            f"{fixed(100 * (row.roofline_fraction or 0), 1)} %",
            f"of {fixed(row.roofline_tokens_per_s, 1)} tok/s",
            row.roofline_fraction,
        ),
        ("energy", f"{fixed(row.joules_per_token, 3)} J", "a token", row.joules_per_token),
        (row.memory_name or "memory", size(row.memory_bytes), "peak", row.memory_bytes),
    ]
    pairs += [(name, f"{fixed(value * 100, 1)} %", "main score", value) for name, value in row.headline.items()]
    if row.target_bytes and row.stored_bytes:
        pairs.append(("budget", size(row.target_bytes), f"asked, {row.stored_bytes / row.target_bytes:.1%} of it stored", row.target_bytes))
    text = Text()
    for name, value, aside, known in pairs:
        if known is None:
            continue
        text.append("\n" if text else "")
        text.append(shorten(name, 12).ljust(13), palette.dim).append(value.rjust(11), palette.text)
        if 26 + len(aside) <= width:
            text.append(f"  {aside}", palette.dim)
    if row.same_tokens_as:
        text.append("\n" + shorten(f"same tokens as {row.same_tokens_as}", width), palette.text)
    return text or None


def _path(row: Row) -> str:
    """How stored bytes were read while the clock ran."""
    return f"{row.read_path} path" + (", not the baseline's" if row.other_read_path else "")


def _rounded(row: Row) -> str:
    """What rounding alone moves, and whether the change is more than that."""
    found = "of perplexity" if row.rounding_kl is None else f"of perplexity, KL {row.rounding_kl:.1g}"
    return f"{found}; ΔPPL is less" if row.within_rounding else found


def _audit(method: MethodState, palette: Palette, width: int) -> Text | None:
    if method.audit_label is None:
        return None
    good = method.audit_label in ("real", "reference", NOTHING_YET)
    text = _section("audit", palette, width - len(method.audit_label) - 3)
    text.append(f" {'✓' if good else '⚠'} {method.audit_label}", palette.ink("success" if good else "warning", bold=True))
    for name, check in (method.audit or {}).items():
        if isinstance(check, Mapping) and not (method.label == BASELINE and name == FEWER):
            _check(text, str(name), check, palette, width)
    return text


def _check(text: Text, name: str, check: Mapping[str, Any], palette: Palette, width: int) -> None:
    passed = bool(check.get("passed"))
    text.append("\n✓ " if passed else "\n✗ ", palette.ink("success" if passed else "error", bold=True))
    text.append(name.replace("_", " "), palette.text)
    detail = str(check.get("detail") or "")
    told = detail[:1].isdigit() or name == FEWER  # the sentence holds the figure
    rest = " ".join(filter(None, ("" if told else _figure(check.get("figure")), detail)))
    text.append(shorten(f"  {rest}", width - 2 - len(name)) if rest else "", palette.dim)


def _figure(value: Any) -> str:
    """A check's figure, whatever kind it is."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _ledger(row: Row, scene: Scene, width: int) -> Text | None:
    items = sorted(ledger(scene.state, row.label).items(), key=lambda item: -item[1])
    if not items:
        return None
    palette, total = scene.palette, sum(v for _, v in items) or 1.0
    text = _section("stored bytes", palette, width, size(total))
    names = min(22, max(len(k) for k, _ in items))
    room = max(0, width - names - 20)
    for name, value in items:
        text.append("\n" + shorten(name, names).ljust(names), palette.text)
        text.append(size(value).rjust(11), palette.text).append(f"{value / total:>6.1%} "[:8].rjust(8), palette.dim)
        filled, empty = bar(value / total, max(0, room - 2))
        text.append(f" {filled}", scene.ink(row.label)).append(empty, palette.line)
    return text


def _layers(row: Row, scene: Scene, width: int) -> Text | None:
    layers = per_layer(scene.state, row.label)
    if not layers:
        return None
    low, high = min(layers), max(layers)
    span = size(low) if low == high else f"{size(low)} to {size(high)}"
    text = _section("by layer", scene.palette, width, f"{len(layers)} layers, {span}")
    columns = spark([0.75 * v / (high or 1.0) for v in _at_most(layers, width)])
    spaced = columns if len(columns) * 2 > width else "".join(f"{c} " for c in columns)
    return text.append("\n" + spaced, scene.ink(row.label))


def _at_most(values: list[float], count: int) -> list[float]:
    """The values, or ``count`` maxima of neighbours if they are more."""
    if len(values) <= count:
        return values
    return [max(values[i * len(values) // count : (i + 1) * len(values) // count]) for i in range(count)]


def _parameters(label: str, scene: Scene, width: int) -> Text | None:
    """Every parameter: what was asked for, or else the default that holds."""
    spec = MethodSpec.parse(label)
    cls = _class_of(spec.name)
    known: list[tuple[str, Any, str]] = cls.parameters() if cls is not None else [(k, v, "") for k, v in spec.params]
    if not known:
        return None
    palette = scene.palette
    text = _section("parameters", palette, width)
    names = max(len(name) for name, _, _ in known) + 2
    budget = scene.state.methods[label].budget
    turned = budget.parameters if budget is not None else {}
    for name, default, meaning in known:
        given = name in spec.options or name in turned
        value = turned.get(name, spec.options.get(name, default))
        if name == "compression_ratio" and not given and scene.state.spec is not None:
            value = scene.state.spec.compression_ratio
        shown = format_value(value) if value is not None else NONE
        text.append("\n" + name.ljust(names), palette.text)
        text.append(shown.ljust(6), palette.ink("accent", bold=True) if given else palette.text)
        room = width - names - max(6, len(shown)) - 1
        text.append(" " + shorten(meaning, room) if room > 8 else "", palette.dim)
    return text
