"""One scale of colours for all heat maps: dark is worse, light is better; told apart without colour vision, and in grey."""

from __future__ import annotations

RAMP = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
"""Viridis (van der Walt and Smith, matplotlib; public domain), nine stops of equal steps in lightness."""
_DARK_INK, _LIGHT_INK = "#000000", "#ffffff"


def fill(share: float) -> str:
    """``#rrggbb`` of a share from 0, worst, to 1, best."""
    return "#" + "".join(f"{round(channel):02x}" for channel in _rgb(share))


def ink(share: float) -> str:
    """The colour of text on it: whichever of black and white stands out more (WCAG 2.1 relative luminance)."""
    luminance = sum(weight * _linear(channel / 255) for weight, channel in zip((0.2126, 0.7152, 0.0722), _rgb(share), strict=True))
    return _DARK_INK if (luminance + 0.05) ** 2 > 0.05 * 1.05 else _LIGHT_INK


def _rgb(share: float) -> tuple[float, ...]:
    at = min(1.0, max(0.0, share)) * (len(RAMP) - 1)
    low = min(int(at), len(RAMP) - 2)
    below, above = (_channels(RAMP[i]) for i in (low, low + 1))
    return tuple(a + (b - a) * (at - low) for a, b in zip(below, above, strict=True))


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
