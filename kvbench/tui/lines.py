"""Widgets that are drawn as lines, of which only the changed ones are sent to the terminal again."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget


class Lines:
    """Keeps a widget's lines.

    Args:
        widget: The widget they belong to; its ``render_line`` returns :meth:`at`.
    """

    def __init__(self, widget: Widget) -> None:
        self._widget = widget
        self._strips: list[Strip] = []
        self._width = -1

    def put(self, strips: Sequence[Strip], ground: Style) -> None:
        """Take the whole content anew and ask for a redraw of the lines that differ."""
        width = self._widget.size.width
        fresh = [strip.adjust_cell_length(width).apply_style(ground) for strip in strips]
        if width != self._width or len(fresh) != len(self._strips):
            self._widget.refresh()
        else:
            changed = [y for y, (a, b) in enumerate(zip(fresh, self._strips, strict=True)) if a != b]
            if changed:
                self._widget.refresh(*(Region(0, y, width, 1) for y in changed))
        self._strips, self._width = fresh, width

    def at(self, y: int) -> Strip:
        """The line, blank beyond the last."""
        return self._strips[y] if y < len(self._strips) else Strip.blank(self._widget.size.width)
