"""A table brought to a width, in characters: long cells on several lines, and columns that do not fit in tables of their own."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace

from kvbench.figures.data import Table

WIDTH = 140
LABEL_WIDTH = 26
"""Characters of a row's first cell before it is broken."""
WORDS_WIDTH = 60
"""Characters of any other cell before it is broken."""
HEADING_WIDTH = 9
"""Characters of a heading that are not broken, however narrow its cells."""
GAP = 2
HEADING_ROOM = 2
"""Columns that tabulate gives a heading beyond its length."""
_PARTS = re.compile(r"(?<=[,:])(?=\S)|(?<=\S)(?=[+@])")
"""Where a label such as ``snapkv:window=8,kernel=3+int4`` may be broken."""


def fitted(table: Table, width: int = WIDTH) -> Iterator[Table]:
    """The table in one or several that repeat the words at its left; its notes are left to the writer."""
    rows = [[broken(cell, LABEL_WIDTH if i == 0 else WORDS_WIDTH) for i, cell in enumerate(row)] for row in table.rows]
    headings = [_heading(name, max((_longest(row[i]) for row in rows), default=0)) for i, name in enumerate(table.headings)]
    whole = replace(table, headings=headings, rows=rows)
    return (whole.of(columns) for columns in _blocks(whole, width))


def _blocks(table: Table, width: int) -> list[list[int]]:
    """Columns by block; in each the first ``left``, or only the first where they leave too little room."""
    sizes = [max(_longest(name) + HEADING_ROOM, *(_longest(row[i]) for row in table.rows), 0) for i, name in enumerate(table.headings)]
    lead = list(range(max(1, table.left)))
    if sum(sizes[i] + GAP for i in lead) > width // 2:
        lead = [0]
    start = sum(sizes[i] for i in lead) + GAP * (len(lead) - 1)
    blocks, used = [list(lead)], start
    for i in range(len(lead), len(table.headings)):
        if used + GAP + sizes[i] > width and len(blocks[-1]) > len(lead):
            blocks.append(list(lead))
            used = start
        blocks[-1].append(i)
        used += GAP + sizes[i]
    return blocks


def _longest(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def _heading(name: str, room: int) -> str:
    """Broken between words where it would be wider than the cells below it."""
    return "\n".join(
        piece for line in name.split("\n") for piece in textwrap.wrap(line, max(room, HEADING_WIDTH), break_long_words=False) or [""]
    )


def broken(text: str, width: int) -> str:
    """A long cell on several lines, broken between words and the parts of a label."""
    if all(len(line) <= width for line in text.split("\n")):
        return text
    return "\n".join(piece for line in text.split("\n") for piece in _wrapped(line, width))


def _wrapped(line: str, width: int) -> list[str]:
    mark = "\u200b"  # stands where a break leaves nothing behind
    pieces = textwrap.wrap(_PARTS.sub(f"{mark} ", line), width, break_on_hyphens=False, subsequent_indent="  ")
    return [piece.replace(f"{mark} ", "").replace(mark, "") for piece in pieces]


def folded(lines: Sequence[str], width: int = WIDTH) -> str:
    """Lines of words, each with what does not fit indented below it."""
    return "\n".join(piece for line in lines for piece in textwrap.wrap(line, width, subsequent_indent="  "))
