"""Our themes, and the few colours that hand-drawn parts need from whichever theme is on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from rich.style import Style
from textual.color import Color
from textual.theme import Theme

NIGHT = Theme(
    name="kvbench-night",
    primary="#7aa2f7",
    secondary="#9d8cf0",
    accent="#ffc66d",
    warning="#f5a65b",
    error="#ff6b7f",
    success="#6fd6a2",
    foreground="#d6dcef",
    background="#0e1119",
    surface="#131723",
    panel="#1c2233",
    dark=True,
    variables={"footer-background": "#131723", "footer-key-foreground": "#ffc66d", "border": "#2c3550"},
)
PAPER = Theme(
    name="kvbench-paper",
    primary="#2f5fd0",
    secondary="#7048c6",
    accent="#b35c00",
    warning="#b36200",
    error="#c8203c",
    success="#18794e",
    foreground="#22262f",
    background="#fbfaf6",
    surface="#f3f1ea",
    panel="#e6e3d8",
    dark=False,
    variables={"footer-background": "#f3f1ea", "footer-key-foreground": "#b35c00", "border": "#cbc6b6"},
)
EMBER = Theme(
    name="kvbench-ember",
    primary="#ff9e64",
    secondary="#e0709c",
    accent="#ffe08a",
    warning="#ffb454",
    error="#ff5d62",
    success="#98d982",
    foreground="#f0e6dc",
    background="#15100e",
    surface="#1b1513",
    panel="#2a201c",
    dark=True,
    variables={"footer-background": "#1b1513", "footer-key-foreground": "#ffe08a", "border": "#4a3830"},
)
THEMES = (NIGHT, PAPER, EMBER)


@dataclass(frozen=True)
class Palette:
    """Named colours (``#rrggbb``) of the theme that is on."""

    dark: bool
    foreground: str
    background: str
    muted: str
    faint: str
    primary: str
    accent: str
    success: str
    warning: str
    error: str
    cursor: str
    pinned: str
    settled: str

    @classmethod
    def of(cls, variables: Mapping[str, str], dark: bool) -> Palette:
        """Take them from a theme's CSS variables; a theme of terminal colours gets :data:`NIGHT`'s."""
        names = ("foreground", "background", "primary", "accent", "success", "warning", "error", "panel")
        found = {name: Color.parse(variables[name]) for name in names}
        if any(color.ansi is not None for color in found.values()):
            found, dark = {name: Color.parse(getattr(NIGHT, name)) for name in names}, True
        paper, ink = found["background"], found["foreground"]
        return cls(
            dark=dark, foreground=ink.hex6, background=paper.hex6, muted=paper.blend(ink, 0.62).hex6, faint=paper.blend(ink, 0.26).hex6,
            primary=found["primary"].hex6, accent=found["accent"].hex6, success=found["success"].hex6,
            warning=found["warning"].hex6, error=found["error"].hex6,
            cursor=paper.blend(found["primary"], 0.24).hex6, pinned=paper.blend(found["panel"], 0.75).hex6,
            settled=paper.blend(found["success"], 0.6).hex6,
        )  # fmt: skip

    @cached_property
    def ground(self) -> Style:
        return Style(color=self.foreground, bgcolor=self.background)

    @cached_property
    def text(self) -> Style:
        return Style(color=self.foreground)

    @cached_property
    def dim(self) -> Style:
        return Style(color=self.muted)

    @cached_property
    def line(self) -> Style:
        return Style(color=self.faint)

    @cached_property
    def strong(self) -> Style:
        return Style(color=self.foreground, bold=True)

    def ink(self, color: str, *, bold: bool = False) -> Style:
        """A style in one of the palette's colours, by field name or as ``#rrggbb``."""
        return _style(color if color.startswith("#") else getattr(self, color), bold)


@lru_cache(maxsize=256)
def _style(colour: str, bold: bool) -> Style:
    return Style(color=colour, bold=bold)
