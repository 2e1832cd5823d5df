"""One colour a method, the same in every run: related methods are near each other in hue.

Greys are references, blues and greens evict, yellows and oranges quantise, violets are low-rank,
reds and pinks are hybrids. A variant (``kivi:bits=2``) is a shade of its method's
colour, chosen by its parameters, so that it too is the same in every run that has no closer relative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from zlib import crc32

from textual.color import Color

_KNOWN: Mapping[str, str] = {
    "baseline": "#e8ecf6", "random": "#8f98b0",
    "streaming_llm": "#3fa7ff", "knorm": "#5ad1e6", "keydiff": "#2fb9c9", "lagkv": "#78c8ff",
    "tova": "#2fd3a4", "h2o": "#58b58a", "snapkv": "#7be07b", "pyramidkv": "#4cc26b",
    "observed_attention": "#6f8dff", "expected_attention": "#b7e35a", "adakv": "#9fd36a", "kvzap": "#00c2ff",
    "int8": "#ffd75e", "int4": "#ffb03b", "fp8": "#ffe79a", "kivi": "#ff8a3d",
    "kivi:bits=4": "#ffa463", "kivi:bits=3": "#f0906a", "kivi:bits=2": "#f2743f", "turboquant": "#e0a05a",
    "v_lowrank": "#b48cff", "orthogonal": "#d08cff", "palu": "#9a6cff", "minicache": "#c9a6e8", "asymkv": "#e3a0d8",
    "hybrid": "#ff5f87", "hybrid_5x": "#ff86b3", "hybrid_8x": "#ff5252", "hybrid_12x": "#e24a9b",
}  # fmt: skip
_SHADES = (0.0, 0.08, -0.07, 0.15, -0.12, 0.22)


def method_colours(labels: Iterable[str], *, dark: bool) -> dict[str, str]:
    """Label → ``#rrggbb`` that reads well on a dark or on a light ground."""
    taken: set[tuple[str, int]] = set()
    colours: dict[str, str] = {}
    for label in labels:
        name, params = _split(label)
        at = crc32(params.encode()) if params else 0
        at = next((at + i for i in range(len(_SHADES)) if (name, (at + i) % len(_SHADES)) not in taken), at) % len(_SHADES)
        taken.add((name, at))
        shade = 0.0 if label in _KNOWN else _SHADES[at]
        base = Color.parse(_KNOWN.get(label) or _KNOWN.get(name) or _unknown(name))
        colour = base.lighten(shade) if shade >= 0 else base.darken(-shade)
        colours[label] = (_for_night(colour) if dark else _for_paper(colour)).hex6
    return colours


def _split(label: str) -> tuple[str, str]:
    """A method's name, and what tells its variants apart: parameters, a budget."""
    end = min((label.index(mark) for mark in ":@" if mark in label), default=len(label))
    return label[:end], label[end + 1 :]


def _unknown(name: str) -> str:
    """A plug-in's colour, from its name alone."""
    return Color.from_hsl(crc32(name.encode()) % 360 / 360, 0.62, 0.66).hex6


def _for_night(colour: Color) -> Color:
    """The same hue, light enough to read on a dark ground."""
    hue, saturation, lightness = colour.hsl
    return Color.from_hsl(hue, saturation, max(lightness, 0.55))


def _for_paper(colour: Color) -> Color:
    """The same hue, dark enough to read on a light ground."""
    hue, saturation, lightness = colour.hsl
    return Color.from_hsl(hue, saturation * 0.95, min(lightness, 0.36 if saturation > 0.2 else 0.30))
