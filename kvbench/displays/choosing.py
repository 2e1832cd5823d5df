"""Which display shows a run: the one that is named, or the one that the terminal can bear. What it draws with is imported then."""

from __future__ import annotations

import sys
from typing import TextIO

from kvbench.displays.base import Display
from kvbench.errors import UsageError

NAMES = ("auto", "full", "plain", "json", "none")


def choose(name: str) -> Display:
    """The display called ``name``; ``auto`` is the dashboard on a terminal and plain lines elsewhere.

    Raises:
        UsageError: the dashboard, on a terminal that cannot show it.
    """
    if name == "auto":
        name = "full" if sys.stdout.isatty() and sys.stderr.isatty() and _has_signs(sys.stdout) else "plain"
    if name == "full":
        if not _has_signs(sys.stdout):
            raise UsageError(f"the dashboard is drawn in Unicode, and this terminal is {sys.stdout.encoding}", hint="--display plain")
        from kvbench.displays.full import Full

        return Full()
    if name == "json":
        from kvbench.displays.json import Json

        return Json()
    if name == "none":
        from kvbench.displays.none import Nothing

        return Nothing()
    from kvbench.displays.plain import Plain

    return Plain()


def _has_signs(stream: TextIO) -> bool:
    """Whether blocks and braille can be written to it."""
    return (stream.encoding or "utf-8").lower().replace("-", "").startswith("utf")
