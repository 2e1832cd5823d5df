r"""Tables and heat maps as LaTeX with booktabs: tables to be taken into a paper, and a document that pdflatex sets as it is.

Everything that TeX would read is escaped. Signs that pdflatex has no glyph for are set as formulas, or by letters alike;
what it lacks all the same (another script's letters) becomes a box with the character's number in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby

from kvbench.figures.colours import fill, ink
from kvbench.figures.data import Grid, Table, tabled
from kvbench.figures.widths import GAP, WIDTH, fitted

_NEEDS = r"\usepackage{booktabs}"
_PREAMBLE = rf"""\documentclass{{article}}
\usepackage[T1]{{fontenc}}
\usepackage[a4paper,landscape,margin=1.5cm]{{geometry}}
\usepackage{{textcomp,amssymb,xcolor,colortbl}}
\IfFileExists{{lmodern.sty}}{{\usepackage{{lmodern}}}}{{}}
{_NEEDS}
\setlength{{\parindent}}{{0pt}}\setlength{{\parskip}}{{6pt}}\setlength{{\tabcolsep}}{{4pt}}
\begin{{document}}\raggedright\footnotesize"""
_ESCAPED = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
}  # fmt: skip
"""What TeX obeys, or joins to the sign before it."""
_SIGNS = {
    "−": "$-$", "Δ": r"$\Delta$", "≤": r"$\leq$", "≥": r"$\geq$", "∞": r"$\infty$", "→": r"$\rightarrow$", "╲": r"$\backslash$",
    "★": r"$\star$",
}  # fmt: skip
_END = r" \\ "
"""Of a line in a table."""
_PAGE = 40
"""Lines of a table on a page."""
_MEANT = str.maketrans(_ESCAPED | _SIGNS)
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
_PAIR = re.compile(r"([-,])(?=\1)")
"""Two of them would become one sign."""
_FIRST = re.compile(r"^[*\[]")
"""What TeX would take for an argument of the line's end before it."""
_SET = (frozenset(map(chr, [*range(0x20, 0x7F), *range(0xA1, 0x17F)])) | frozenset("–—…„€\u2018\u2019\u201c\u201d")) - frozenset(
    "\u00adĦħĸĿŀŉŦŧ"
)
"""What pdflatex sets as it is."""


ENDING = r"\end{document}"


def opening(title: str, warning: str, facts: Sequence[tuple[str, str]]) -> list[str]:
    """A document's beginning, with its title and facts."""
    told = "\n".join(_row([rf"\textbf{{{escaped(name)}}}", escaped(value)]) for name, value in facts)
    table = [f"\\begin{{tabular}}{{lp{{0.8\\linewidth}}}}\n{told}\n\\end{{tabular}}"] if facts else []
    return [_PREAMBLE, heading(title), *([rf"\textbf{{{escaped(warning)}}}"] if warning else []), *table]


def heading(title: str) -> str:
    return f"\\section*{{{escaped(title)}}}"


def figure(found: Table | Sequence[Grid]) -> list[str]:
    """A table that goes on over pages, or heat maps of one kind, under its title."""
    title, _, notes = tabled(found)
    if isinstance(found, Table):
        parts = [part for table in fitted(found) for part in _pages(table)]
    else:
        parts = ["\\quad\n".join(part for grid in found for part in _heat(grid))]
    return [rf"\subsection*{{{escaped(title)}}}", *parts, *([lines(notes)] if notes else [])]


def floating(found: Table) -> str:
    """A table for a paper, its title as the caption."""
    body = _ruled(found, _body(found))
    return f"\\begin{{table}}[htbp]\n\\centering\\small\n\\caption{{{escaped(found.title)}}}\n{body}\n\\end{{table}}"


def remarks(found: Sequence[str]) -> str:
    """Lines that TeX passes over; the first says what tables need."""
    return "\n".join(f"% {' '.join(line.split())}" for line in (_NEEDS, *found))


def _pages(table: Table, paints: Sequence[Sequence[str]] | None = None) -> Iterator[str]:
    """As many rows as fit a page, then the next ones under the same headings; ``paints`` are what comes before each cell."""
    rows = _body(table)
    if paints is not None:
        rows = [[paint + cell for paint, cell in zip(*pair, strict=True)] for pair in zip(paints, rows, strict=True)]
    heights = accumulate(1 + max(cell.count(_END) for cell in row) for row in rows)
    pages = groupby(zip(heights, rows, strict=True), key=lambda row: row[0] // _PAGE)
    yield from (_ruled(table, [row for _, row in page]) for _, page in pages)


def _body(table: Table) -> list[list[str]]:
    return [[_cell(cell, side) for cell, side in zip(row, table.aligned, strict=True)] for row in table.rows]


def _ruled(table: Table, body: Sequence[Sequence[str]]) -> str:
    """Rules of booktabs, no vertical ones."""
    head = [_cell(name, side) for name, side in zip(table.headings, table.aligned, strict=True)]
    rows = [r"\toprule", _row(head), r"\midrule", *map(_row, body), r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{{table.aligned}}}", *rows, r"\end{tabular}"])


def _row(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)}{_END}"


def _cell(text: str, side: str) -> str:
    """What stands on several lines is a table of its own."""
    if "\n" not in text:
        return escaped(text)
    return (
        rf"\begin{{tabular}}[t]{{@{{}}{side}@{{}}}}{_END.join(escaped(line) for line in text.splitlines() if line.strip())}\end{{tabular}}"
    )


def _heat(grid: Grid) -> Iterator[str]:
    """Tables of the grid's numbers on its colours under its method: as many columns as fit a page, then the next ones."""
    numbers, paints = grid.numbers, [["", *(_paint(grid.goodness(value)) for value in row)] for row in grid.values]
    left, *widths = (max(map(len, column)) + GAP for column in zip(numbers.headings, *numbers.rows, strict=True))
    fit = max(1, (WIDTH - left) // max(widths, default=1))
    for at in range(1, len(widths) + 1, fit):
        shown = [0, *range(at, min(at + fit, len(widths) + 1))]
        for part in _pages(numbers.of(shown), [[row[i] for i in shown] for row in paints]):
            yield rf"\begin{{tabular}}[t]{{@{{}}l@{{}}}}\textbf{{{escaped(grid.method)}}}{_END}{part}\end{{tabular}}"


def _paint(share: float | None) -> str:
    if share is None:
        return ""
    return f"\\cellcolor[HTML]{{{fill(share)[1:].upper()}}}\\color[HTML]{{{ink(share)[1:].upper()}}}"


def lines(found: Sequence[str]) -> str:
    items = "\n".join(f"\\item {escaped(line)}" for line in found)
    return f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}"


def code(text: str) -> str:
    """Broken between words and the parts of a list."""
    return "\n\n".join(rf"\texttt{{{escaped(line)}}}".replace(",", r",\allowbreak{}") for line in text.splitlines())


def escaped(text: str) -> str:
    """Text that TeX sets as it is, on one line."""
    meant = _MINUS.sub("\N{MINUS SIGN}", " ".join(text.split())).translate(_MEANT)
    return _FIRST.sub(r"{\g<0>}", _PAIR.sub(r"\1{}", "".join(map(_set, meant))))


def _set(character: str) -> str:
    return character if character in _SET else rf"\fbox{{\tiny {ord(character):X}}}"
