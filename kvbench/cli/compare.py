"""``kvbench compare A B``."""

from __future__ import annotations

import shutil
import sys
from os.path import isfile
from pathlib import Path

import click

from kvbench.compare import Checked, Comparison, Side, Threshold, check, render, side_of
from kvbench.compare import compare as set_against
from kvbench.displays.streams import put, talk
from kvbench.engine.journal import find_run
from kvbench.errors import ExitCode
from kvbench.printable import printable_data
from kvbench.record.results import load
from kvbench.record.unreadable import figures_of

_WRITERS = {"markdown": render.markdown_text, "latex": render.latex_text, "csv": render.csv_text}
_COLOURS = {"better": "green", "worse": "red", "differs": "yellow", "not comparable": "magenta"}


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--fail-on", "limits", multiple=True, metavar="[METHOD/]METRIC:+N[%]", help="Exit with 1 if B is shown to be worse by more.")
@click.option("--format", "form", type=click.Choice(["text", "markdown", "latex", "json", "csv"]), default="text", show_default=True)
@click.option(
    "--output-dir", default="bench_results", show_default=True, type=click.Path(path_type=Path), help="Where run names are looked up."
)
@click.pass_context
def compare(context: click.Context, a: str, b: str, limits: tuple[str, ...], form: str, output_dir: Path) -> None:
    """Set result B against result A, method by method and metric by metric.

    A and B are result files, run folders, or names of runs under --output-dir. Bytes are compared by value, scores by a
    paired test on the same samples, times by Mann-Whitney on the raw repeats. "~" marks what is not shown to differ,
    "x" what cannot be compared.

    \b
    kvbench compare before after --fail-on 'perplexity:+1%' --fail-on 'kivi:bits=2/tokens_per_s:-5%'
    """
    thresholds = [Threshold.parse(limit) for limit in limits]
    sides = _side(a, output_dir), _side(b, output_dir)
    with figures_of(f"{a} or {b}"):
        found = set_against(*sides)
        checked = check(thresholds, found.findings, found.methods)
        text = _rendered(found, checked, form)
    put(text, coloured=form == "text" and sys.stdout.isatty())
    for line in (*found.warnings, *checked.untested):
        talk(f"warning: {line}")
    for line in checked.crossed:
        talk(f"failed: {line}")
    if checked.crossed:
        context.exit(ExitCode.THRESHOLD)


def _side(text: str, output_dir: Path) -> Side:
    path = Path(text) if isfile(text) else find_run(text, output_dir).path
    found = load(path)
    with figures_of(path):
        return side_of({key: value if key == "records" else printable_data(value) for key, value in found.items()})


def _rendered(found: Comparison, checked: Checked, form: str) -> str:
    if form == "json":
        return render.json(found, checked.crossed)
    if form in _WRITERS:
        return _WRITERS[form](found)
    columns = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 120
    return render.text(found, _paint if sys.stdout.isatty() else render.plain, width=max(80, min(120, columns)))


def _paint(text: str, kind: str) -> str:
    if kind == "heading":
        return click.style(text, bold=True)
    if kind == "quiet":
        return click.style(text, dim=True)
    return click.style(text, fg=_COLOURS[kind])
