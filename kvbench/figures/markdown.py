"""Tables and heat maps as Markdown for GitHub, heat maps as tables of their numbers."""

from __future__ import annotations

from collections.abc import Sequence

from kvbench.figures.data import Grid, Table, tabled

_SPECIAL = str.maketrans({"\\": "\\\\", "|": "\\|", "<": "&lt;", ">": "&gt;", "&": "&amp;", "*": "\\*", "`": "\\`", "[": "\\[", "]": "\\]"})

ENDING = ""


def opening(title: str, warning: str, facts: Sequence[tuple[str, str]]) -> list[str]:
    """A document's title and facts."""
    told = "\n".join(f"- **{escaped(name)}**: {escaped(value)}" for name, value in facts)
    return [f"# {escaped(title)}", *([f"> {escaped(warning)}"] if warning else []), told]


def heading(title: str) -> str:
    return f"## {escaped(title)}"


def figure(found: Table | Sequence[Grid]) -> list[str]:
    """A table, or heat maps of one kind, under its title."""
    title, tables, notes = tabled(found)
    parts = [part for of, one in tables for part in (*([f"**{escaped(of)}**"] if of else []), table(one))]
    return [f"### {escaped(title)}", *parts, *([lines(notes)] if notes else [])]


def table(found: Table) -> str:
    """The first columns to the left as they are words, the others to the right; everything that Markdown would read is escaped."""
    marks = [":--" if i < found.left else "--:" for i in range(len(found.headings))]
    rows = [map(escaped, found.headings), marks, *(map(escaped, row) for row in found.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def aligned(found: Table) -> str:
    """Lined up to be read as it is too; only what would end a cell is escaped."""
    from tabulate import tabulate

    rows = [[cell.replace("|", "\\|") for cell in row] for row in found.rows]
    return tabulate(rows, found.headings, tablefmt="github", disable_numparse=True)


def lines(found: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in found)


def code(text: str) -> str:
    fence = "```" if "```" not in text else "````"
    return f"{fence}sh\n{text}\n{fence}"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return "<br>".join(line.translate(_SPECIAL) for line in text.splitlines()) if text else ""
