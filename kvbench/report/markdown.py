"""A report as Markdown for GitHub: tables throughout, heat maps as tables of their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvbench.figures import Grid, Table
from kvbench.report.content import Report, Section
from kvbench.report.text import grouped, is_share, title_of, written

_SPECIAL = str.maketrans({"\\": "\\\\", "|": "\\|", "<": "&lt;", ">": "&gt;", "&": "&amp;", "*": "\\*", "`": "\\`", "[": "\\[", "]": "\\]"})


def markdown(report: Report) -> str:
    """The whole report."""
    parts = [f"# {escaped(report.title)}", *([f"> {escaped(report.warning)}"] if report.warning else [])]
    parts.append("\n".join(f"- **{escaped(name)}**: {escaped(value)}" for name, value in report.facts))
    for section in report.sections:
        parts += [f"## {escaped(section.title)}", *_body(section)]
    return "\n\n".join(parts) + "\n"


def _body(section: Section) -> Iterator[str]:
    for figure in grouped(section.figures):
        yield from _table(figure) if isinstance(figure, Table) else _grids(figure)
    if section.lines:
        yield "\n".join(f"- {escaped(line)}" for line in section.lines)
    if section.code:
        fence = "```" if "```" not in section.code else "````"
        yield f"{fence}sh\n{section.code}\n{fence}"


def _table(table: Table) -> Iterator[str]:
    yield f"### {escaped(table.title)}"
    yield _github(table.headings, table.rows, table.left)
    yield from _notes(table.notes)


def _grids(grids: Sequence[Grid]) -> Iterator[str]:
    first = grids[0]
    yield f"### {escaped(title_of(grids))}" + (", in %" if is_share(first) else "")
    for grid in grids:
        corner = " ╲ ".join(filter(None, (grid.row_name, grid.column_name)))
        rows = [[name, *(written(grid, value) for value in row)] for name, row in zip(grid.rows, grid.values, strict=True)]
        yield f"**{escaped(grid.method)}**"
        yield _github([corner, *grid.columns], rows, 1)
    yield from _notes(list(dict.fromkeys(note for grid in grids for note in grid.notes)))


def _github(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    lines = [headings, [":--" if i < left else "--:" for i in range(len(headings))], *rows]
    return "\n".join("| " + " | ".join(cell if at == 1 else escaped(cell) for cell in line) + " |" for at, line in enumerate(lines))


def _notes(notes: Sequence[str]) -> Iterator[str]:
    if notes:
        yield "\n".join(f"- {escaped(note)}" for note in notes)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return "<br>".join(line.translate(_SPECIAL) for line in text.splitlines()) if text else ""
