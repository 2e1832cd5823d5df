"""All that a run found, in one document: read from ``result.json`` alone, written as text, Markdown or HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvbench.report.content import Report, Section, build

FORMATS = ("text", "markdown", "html")

__all__ = ["FORMATS", "Report", "Section", "build", "write"]


def write(result: Mapping[str, Any], form: str) -> str:
    """The report of a loaded result in one of ``FORMATS``."""
    report = build(result)
    if form == "html":
        from kvbench.report.html import html

        return html(report)
    if form == "markdown":
        from kvbench.report.markdown import markdown

        return markdown(report)
    from kvbench.report.text import text

    return text(report)
