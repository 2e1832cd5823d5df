"""Colours of methods and of values, the same on the dashboard and in a report.

One colour a method, in every run: related methods are near each other in hue. Greys are references, blues and greens evict,
yellows and oranges quantise, violets are low-rank, reds and pinks are hybrids. A variant (``kivi:bits=2``) is a shade of its
method's colour, chosen by its parameters, so that it too is the same in every run that has no closer relative.

One ramp for the values of a report's heat maps: dark is worse, light is better; told apart without colour vision, and in grey.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from colorsys import hls_to_rgb, rgb_to_hls
from zlib import crc32

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
RAMP = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
"""Viridis (van der Walt and Smith, matplotlib; public domain), nine stops of equal steps in lightness."""
_DARK_INK, _LIGHT_INK = "#000000", "#ffffff"
_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
_RGB = ((3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570))
"""Linear sRGB to CIE XYZ and back; each row of the one sums to its part of white (D65)."""


def method_colours(labels: Iterable[str], *, dark: bool) -> dict[str, str]:
    """Label → ``#rrggbb`` that reads well on a dark or on a light ground."""
    taken: set[tuple[str, int]] = set()
    colours: dict[str, str] = {}
    for label in labels:
        name, params = _split(label)
        at = crc32(params.encode()) if params else 0
        at = next((at + i for i in range(len(_SHADES)) if (name, (at + i) % len(_SHADES)) not in taken), at) % len(_SHADES)
        taken.add((name, at))
        base = _KNOWN.get(label) or _KNOWN.get(name) or _unknown(name)
        colours[label] = _readable(_lightened(base, 0.0 if label in _KNOWN else _SHADES[at]), dark)
    return colours


def _split(label: str) -> tuple[str, str]:
    """A method's name, and what tells its variants apart: parameters, a budget."""
    end = min((label.index(mark) for mark in ":@" if mark in label), default=len(label))
    return label[:end], label[end + 1 :]


def _unknown(name: str) -> str:
    """A plug-in's colour, from its name alone."""
    return _of_hls(crc32(name.encode()) % 360 / 360, 0.66, 0.62)


def _readable(colour: str, dark: bool) -> str:
    """The same hue, light enough to read on a dark ground, or dark enough to read on a light one."""
    hue, lightness, saturation = rgb_to_hls(*_channels(colour))
    if dark:
        return _of_hls(hue, max(lightness, 0.55), saturation)
    return _of_hls(hue, min(lightness, 0.36 if saturation > 0.2 else 0.30), saturation * 0.95)


def _lightened(colour: str, by: float) -> str:
    """The same hue, lighter by a share of the way from black to white as the eye sees it (CIE L*)."""
    linear = [_linear(channel) for channel in _channels(colour)]
    roots = (_root(_dot(row, linear) / sum(row)) + by / 1.16 for row in _XYZ)
    xyz = [sum(row) * _cube(root) for row, root in zip(_XYZ, roots, strict=True)]
    return _hex([_gamma(_dot(row, xyz)) for row in _RGB], 0.0)


def blend(one: str, other: str, share: float) -> str:
    """The colour that lies ``share`` of the way from one to the other."""
    return _hex([a + (b - a) * min(1.0, max(0.0, share)) for a, b in zip(_channels(one), _channels(other), strict=True)], 1e-9)


def fill(share: float) -> str:
    """The ramp's colour for a share from 0, worst, to 1, best."""
    at = min(1.0, max(0.0, share)) * (len(RAMP) - 1)
    low = min(int(at), len(RAMP) - 2)
    return blend(RAMP[low], RAMP[low + 1], at - low)


def ink(share: float) -> str:
    """The colour of text on it: whichever of black and white stands out more (WCAG 2.1 relative luminance)."""
    luminance = _dot(_XYZ[1], [_linear(channel) for channel in _channels(fill(share))])
    return _DARK_INK if (luminance + 0.05) ** 2 > 0.05 * 1.05 else _LIGHT_INK


def _channels(colour: str) -> list[float]:
    """Red, green and blue of ``#rrggbb``, 0 to 1."""
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _hex(channels: Sequence[float], up: float = 0.5) -> str:
    return "#" + "".join(f"{min(255, max(0, int(channel * 255 + up))):02x}" for channel in channels)


def _of_hls(hue: float, lightness: float, saturation: float) -> str:
    return _hex(hls_to_rgb(hue, lightness, saturation))


def _dot(row: Sequence[float], column: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(row, column, strict=True))


def _linear(channel: float) -> float:
    """Of sRGB to the amount of light."""
    return ((channel + 0.055) / 1.055) ** 2.4 if channel > 0.04045 else channel / 12.92


def _gamma(light: float) -> float:
    return 1.055 * light ** (1 / 2.4) - 0.055 if light > 0.0031308 else 12.92 * light


def _root(light: float) -> float:
    """CIE Lab's cube root, straight near black."""
    return light ** (1 / 3) if light > 0.008856 else 7.787 * light + 16 / 116


def _cube(root: float) -> float:
    return root**3 if root > 0.2068930344 else (root - 16 / 116) / 7.787
