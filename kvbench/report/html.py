"""A report as one HTML file: no scripts, nothing fetched, light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from kvbench.figures import Grid, Table
from kvbench.report.colours import RAMP, fill, ink
from kvbench.report.content import Report, Section
from kvbench.report.scatter import scatter
from kvbench.report.style import STYLE
from kvbench.report.text import goodness, grouped, is_share, is_words, title_of, written

_LONG = 48
"""Characters of a cell beyond which it is text to read and not a name or figure."""
_FOLDED = frozenset({"Data", "The run's command"})
"""Sections that are opened when wanted."""


def html(report: Report) -> str:
    """The whole document. All text is escaped."""
    title = escape(f"{report.title} – kvbench")
    body = "\n".join((_head(report), _contents(report), *(_section(i, s) for i, s in enumerate(report.sections))))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    facts = "\n".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in report.facts)
    warning = f'<p class="warning">{escape(report.warning)}</p>\n' if report.warning else ""
    return f'<header>\n<p class="kind">kvbench report</p>\n<h1>{escape(report.title)}</h1>\n{warning}<dl>\n{facts}\n</dl>\n</header>'


def _contents(report: Report) -> str:
    links = "\n".join(f'<a href="#s{i}">{escape(section.title.partition(":")[0])}</a>' for i, section in enumerate(report.sections))
    return f'<nav aria-label="Sections">\n{links}\n</nav>'


def _section(number: int, section: Section) -> str:
    inner = "\n".join(_body(section))
    if section.title in _FOLDED:
        inner = f"<details>\n<summary>Show</summary>\n{inner}\n</details>"
    return f'<section id="s{number}">\n<h2>{escape(section.title)}</h2>\n{inner}\n</section>'


def _body(section: Section) -> Iterator[str]:
    if len(section.points) > 1:
        yield scatter(section.points)
    for figure in grouped(section.figures):
        yield _table(figure) if isinstance(figure, Table) else _grids(figure)
    if section.lines:
        yield _list(section.lines)
    if section.code:
        yield f"<pre><code>{escape(section.code)}</code></pre>"


def _table(table: Table) -> str:
    left = [i < table.left or is_words(table.rows, i) for i in range(len(table.headings))]
    heads = "".join(f'<th scope="col"{_side(is_left)}>{_lines(name)}</th>' for name, is_left in zip(table.headings, left, strict=True))
    rows = "\n".join(f"<tr>{''.join(_cell(cell, i, left[i]) for i, cell in enumerate(row))}</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.title)}</caption>"
    return (
        f'<div class="wide"><table>\n{caption}\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
        f"{_notes(table.notes)}"
    )


def _cell(text: str, column: int, is_left: bool) -> str:
    if column == 0:
        return f'<th scope="row">{_lines(text)}</th>'
    is_long = len(text) > _LONG
    return f"<td{_side(is_left or is_long, is_long=is_long)}>{_lines(text)}</td>"


def _side(is_left: bool, *, is_long: bool = False) -> str:
    names = " ".join(name for name, given in (("left", is_left), ("long", is_long)) if given)
    return f' class="{names}"' if names else ""


def _grids(grids: Sequence[Grid]) -> str:
    first = grids[0]
    unit = " (%)" if is_share(first) else ""
    maps = "\n".join(_grid(grid) for grid in grids)
    notes = _notes(list(dict.fromkeys(note for grid in grids for note in grid.notes)))
    return f'<h3>{escape(title_of(grids))}{unit}</h3>\n{_legend(first)}\n<div class="maps">\n{maps}\n</div>{notes}'


def _legend(grid: Grid) -> str:
    """The colours from the bad end to the good one, with the values that they stand for."""
    ends = (grid.low, grid.high) if grid.good == "high" else (grid.high, grid.low)
    bad, good = (escape(written(grid, value)) for value in ends)
    stops = ", ".join(RAMP)
    return (
        f'<p class="legend"><span>worse: {bad}</span><span class="ramp" role="img" aria-label="from dark, worse, to light, better" '
        f'style="background:linear-gradient(90deg, {stops})"></span><span>{good}: better</span></p>'
    )


def _grid(grid: Grid) -> str:
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in grid.columns)
    corner = escape(" ╲ ".join(filter(None, (grid.row_name, grid.column_name))))
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(_heat(grid, value) for value in row)}</tr>'
        for name, row in zip(grid.rows, grid.values, strict=True)
    )
    return (
        f'<table class="map">\n<caption>{escape(grid.method)}</caption>\n'
        f"<thead><tr><th>{corner}</th>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    )


def _heat(grid: Grid, value: float | None) -> str:
    share = goodness(grid, value)
    if share is None:
        return '<td class="none">–</td>'
    return f'<td style="background:{fill(share)};color:{ink(share)}">{escape(written(grid, value))}</td>'


def _notes(notes: Sequence[str]) -> str:
    return f'\n<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>' if notes else ""


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _lines(text: str) -> str:
    return "<br>".join(escape(line) for line in text.split("\n"))
