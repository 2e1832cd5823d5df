"""All that a run found, in one document: read from ``result.json`` alone, written as text, Markdown, HTML, LaTeX or CSV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvbench.figures import csv, latex, markdown, terminal
from kvbench.report.content import Report, Section, build
from kvbench.report.document import Writer, document

FORMATS = ("text", "markdown", "html", "latex", "csv")
_WRITERS: Mapping[str, Writer] = {"text": terminal, "markdown": markdown, "latex": latex, "csv": csv}

__all__ = ["FORMATS", "Report", "Section", "build", "write"]


def write(result: Mapping[str, Any], form: str) -> str:
    """The report of a loaded result in one of ``FORMATS``."""
    report = build(result)
    if form != "html":
        return document(report, _WRITERS[form])
    from kvbench.figures import html
    from kvbench.report.scatter import scatter

    return str(html.page("report/report.html", report=report, scatter=scatter))
