"""``kvbench report RUN``."""

from __future__ import annotations

from os.path import isfile
from pathlib import Path

import click

from kvbench.cli import options
from kvbench.displays.streams import put, talk
from kvbench.engine.journal import find_run
from kvbench.errors import ResourceError, UsageError
from kvbench.files import write_whole
from kvbench.printable import printable
from kvbench.record import results
from kvbench.record.unreadable import figures_of
from kvbench.report import FORMATS, write

_BY_NAME = {".html": "html", ".htm": "html", ".md": "markdown", ".tex": "latex", ".csv": "csv", ".txt": "text"}


@click.command()
@click.argument("run")
@options.output_dir
@click.option("--format", "form", type=click.Choice(FORMATS), help="[default: by the name of -o, else text]")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Where to.  [default: stdout]")
def report(run: str, output_dir: Path, form: str | None, out: Path | None) -> None:
    """Write all that a run found: its tables with intervals, heat maps, audit, published figures, failures.

    RUN is a run's folder, its name under --output-dir, or a result file. HTML is one file that needs no other, LaTeX a document
    that pdflatex sets as it is; CSV has the tables one under the other.

    \b
    kvbench report 2026-11-22_14-03-05_smollm2 -o report.html
    kvbench report before/result.json --format markdown
    """
    named = _form_of(out) if out is not None else "text"
    chosen = form or named
    path = Path(run) if isfile(run) else find_run(run, output_dir).path
    result = results.load(path)
    with figures_of(path):
        text = write(result, chosen)
    if out is None:
        put(text)
        return
    try:
        write_whole(out, (text if chosen == "html" else printable(text)).encode())
    except OSError as error:
        raise ResourceError(f"{out} cannot be written: {error.strerror}", hint="choose another place with -o") from error
    talk(f"report: {out}")


def _form_of(out: Path) -> str:
    """What a file's name says that it holds; one without a suffix says nothing, and holds text.

    Raises:
        UsageError: nothing that a report can be.
    """
    suffix = out.suffix.lower()
    if suffix and suffix not in _BY_NAME:
        raise UsageError(f"-o {out}: a report cannot be written as {suffix}", hint=f"name a file that ends in {', '.join(_BY_NAME)}")
    return _BY_NAME.get(suffix, "text")
