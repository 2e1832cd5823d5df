"""A report as a document of parts, in any format that has a writer for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kvbench.figures.data import Grid, Table, grouped
from kvbench.report.content import Report


class Writer(Protocol):
    """What a format's module writes (:mod:`kvbench.figures.terminal`); parts are set apart by an empty line."""

    ENDING: str
    """What closes a document, if anything."""

    def opening(self, title: str, warning: str, facts: Sequence[tuple[str, str]]) -> list[str]: ...
    def heading(self, title: str) -> str: ...
    def figure(self, found: Table | Sequence[Grid]) -> list[str]: ...
    def lines(self, found: Sequence[str]) -> str: ...
    def code(self, text: str) -> str: ...


def document(report: Report, to: Writer) -> str:
    """The whole report; nothing is left out."""
    parts = to.opening(report.title, report.warning, report.facts)
    for section in report.sections:
        parts.append(to.heading(section.title))
        parts += [part for figure in grouped(section.figures) for part in to.figure(figure)]
        parts += [to.lines(section.lines)] if section.lines else []
        parts += [to.code(section.code)] if section.code else []
    return "\n\n".join([*parts, *filter(None, [to.ENDING])]) + "\n"
