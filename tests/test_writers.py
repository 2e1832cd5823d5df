"""Every format writes one grid whole, and nothing in it is obeyed by what reads the format."""

from __future__ import annotations

import csv as stdlib_csv
import io
import re
from html.parser import HTMLParser

import pytest

from kvbench.figures import Grid, Table, csv, html, latex, markdown, terminal
from kvbench.figures.colours import blend, fill
from kvbench.figures.data import Figure

NASTY = ["a|b & c", "50 % of x_1 < y", "\\input{/etc/passwd}", "<b>$#~^</b>", "`c` *d* [e](f)", "--evals ?` q", '"quoted", and more']
TABLE = Table(
    "t", "Title & more", ["method", "two\nlines", "text"], [["knorm", "-0.5 [-1.0, +2.0]", cell] for cell in NASTY], notes=["n_1"]
)
GRID = Grid("g", "Found", "snapkv_1", ["0 %", "50 %"], ["1k", "2k", "4k"], [[0.0, 0.5, None], [1.0, 0.25, 0.75]], "depth", "tokens")
WRITERS = {"terminal": terminal, "markdown": markdown, "latex": latex, "csv": csv}


def unescaped(form: str, text: str) -> str:
    """What a reader of the format sees."""
    if form == "markdown":
        text = re.sub(r"\\([\\|*`\[\]])", r"\1", text)
        return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    if form == "latex":
        for sign, said in latex._ESCAPED.items():
            text = text.replace(said, sign) if len(said) > 2 else text
        text = text.replace("$-$", "-").replace("{}", "")
        return re.sub(r"\\([{}$&#%_])", r"\1", text)
    if form == "csv":
        return "\n".join(" ".join(row) for row in stdlib_csv.reader(io.StringIO(text)))
    return text


@pytest.mark.parametrize("form", WRITERS)
def test_every_format_says_every_cell_and_note(form: str) -> None:
    said = " ".join(unescaped(form, "\n\n".join(WRITERS[form].figure(TABLE))).split())
    for text in [*NASTY, "-0.5 [-1.0, +2.0]", "method", "n_1", "Title & more"]:
        assert text in said, text


@pytest.mark.parametrize("form", WRITERS)
def test_every_format_says_every_value_of_a_heat_map(form: str) -> None:
    said = unescaped(form, "\n\n".join(WRITERS[form].figure([GRID])))
    assert {"0", "50", "100", "25", "75", "–", "1k", "2k", "4k"} <= set(re.findall(r"[\w–]+", said))
    assert "snapkv_1" in said


def test_markdown_keeps_three_cells_a_line() -> None:
    lines = markdown.table(TABLE).splitlines()
    assert lines[1] == "| :-- | --: | --: |"
    for found in (lines, markdown.aligned(Table("t", "", ["method", "two", "text"], TABLE.rows)).splitlines()):
        assert len(found) == 2 + len(NASTY)
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in found} == {4}


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def seen(figure: Figure | list[Grid]) -> Seen:
    template = html._templates().from_string('{% from "figures/figure.html" import figure %}{{ figure(found) }}')
    reader = Seen()
    reader.feed(template.render(found=figure))
    return reader


def test_html_has_a_row_a_line_and_reads_no_cell() -> None:
    found = seen(TABLE)
    assert {tag for tag, _ in found.tags} == {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "br", "ul", "li"}
    assert sum(tag == "tr" for tag, _ in found.tags) == 1 + len(NASTY)
    assert set(NASTY) <= set(found.texts)


def test_html_paints_a_heat_map_by_its_scale() -> None:
    cells = [attributes for tag, attributes in seen([GRID]).tags if tag == "td"]
    assert [re.findall(r"background:(#\w+)", cell.get("style") or "") for cell in cells] == [
        [fill(0.0)], [fill(0.5)], [], [fill(1.0)], [fill(0.25)], [fill(0.75)],
    ]  # fmt: skip
    assert cells[2] == {"class": "none"}


def test_latex_has_as_many_cells_a_line_whatever_is_in_them() -> None:
    found = latex.floating(TABLE)
    assert r"\begin{tabular}{lrr}" in found
    rows = found.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().split(" \\\\ \n")
    assert len(rows) == len(NASTY)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {2}
    assert not re.search(r"(?<!\\)[%#]", found)
    assert found.count(r"\caption{Title \& more}") == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a_b & 5 % of #1", r"a\_b \& 5 \% of \#1"),
        ("\\x{y}", r"\textbackslash{}x\{y\}"),
        ("--flag a,,b", r"-{}-flag a,{},b"),
        ("[0, 1]", "{[}0, 1]"),  # else an argument of the line's end before it
        ("*", "{*}"),
        ("-0.5 [-1, +2] 2026-11-27 1e-4", "$-$0.5 [$-$1, +2] 2026-11-27 1e-4"),
        ("ΔPPL ≤ 2×", r"$\Delta$PPL $\leq$ 2×"),
        ("é 漢", r"é \fbox{\tiny 6F22}"),
        ("a\n  b", "a b"),
        ("\x1b[0m \u202e", r"\fbox{\tiny 1B}[0m \fbox{\tiny 202E}"),
    ],
)
def test_latex_escapes_what_tex_would_obey(text: str, wanted: str) -> None:
    assert latex.escaped(text) == wanted


def test_latex_goes_on_over_pages_under_the_same_headings() -> None:
    long = Table("t", "Long", ["method", "n"], [[f"m{i}", str(i)] for i in range(95)])
    title, *pages = latex.figure(long)
    assert title == r"\subsection*{Long}"
    assert len(pages) == 3
    assert all(r"method & n" in page for page in pages)
    assert re.findall(r"^m(\d+) &", "\n".join(pages), re.MULTILINE) == list(map(str, range(95)))


def test_csv_reads_back_as_it_was() -> None:
    title, headings, *rows = stdlib_csv.reader(io.StringIO(csv.figure(TABLE)[0]))
    assert (title, headings) == (["Title & more"], ["method", "two lines", "text"])
    assert [row[2].removeprefix("'") for row in rows] == NASTY
    assert {tuple(row[:2]) for row in rows} == {("knorm", "-0.5 [-1.0, +2.0]")}


@pytest.mark.parametrize("text", ["=1+1", '=HYPERLINK("x")', "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "\t=1", "\n=1"])
def test_no_cell_of_csv_is_a_formula(text: str) -> None:
    assert next(stdlib_csv.reader(io.StringIO(csv.table([[text]])))) == [f"'{text}"]


@pytest.mark.parametrize("cell", ["-0.5", "+12.35 [-10.25, +14.50]", "+", "-", "~", "a=1", -0.5, None, "–"])
def test_figures_stay_figures_in_csv(cell: object) -> None:
    assert next(stdlib_csv.reader(io.StringIO(csv.table([["x", cell]])))) == ["x", "" if cell is None else str(cell)]


def test_sides_go_by_the_columns_that_are_asked_for() -> None:
    assert TABLE.aligned == "lrr"
    assert TABLE.of([0, 2]).aligned == "lr"
    assert Table("t", "", ["method", "audit"], [["knorm", "real"]]).aligned == "ll"
    assert Table("t", "", ["a", "b"], [["x", "y"]], sides="rl").aligned == "rl"
    assert terminal.columns(Table("t", "", ["a", "b"], [])).splitlines()[0].split() == ["a", "b"]


def test_a_value_that_is_no_number_lies_at_the_bad_end() -> None:
    for good in ("high", "low"):
        grid = Grid("g", "", "m", ["a"], ["b"], [[float("nan")]], low=1.0, high=2.0, good=good)
        assert grid.goodness(float("nan")) == grid.goodness(float("inf")) == 0.0
    assert grid.written(float("nan")) == "nan"


def test_blends_end_at_their_ends() -> None:
    assert [blend("#102030", "#ffffff", at) for at in (-1.0, 0.0, 1.0, 2.0)] == ["#102030", "#102030", "#ffffff", "#ffffff"]
    assert blend("#000000", "#0a141e", 0.5) == "#050a0f"
