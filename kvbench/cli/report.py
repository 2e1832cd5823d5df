"""``kvbench report RUN``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kvbench import results
from kvbench.cli import options
from kvbench.cli.following import talk
from kvbench.engine.journal import find_run
from kvbench.errors import ResourceError
from kvbench.report import FORMATS, write

_BY_NAME = {".html": "html", ".htm": "html", ".md": "markdown", ".txt": "text"}


@click.command()
@click.argument("run")
@options.output_dir
@click.option("--format", "form", type=click.Choice(FORMATS), help="[default: by the name of -o, else text]")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Where to.  [default: stdout]")
def report(run: str, output_dir: Path, form: str | None, out: Path | None) -> None:
    """Write all that a run found: its tables with intervals, heat maps, audit, published figures, failures.

    RUN is a run's folder, its name under --output-dir, or a result file. HTML is one file that needs no other.

    \b
    kvbench report 2026-11-22_14-03-05_smollm2 -o report.html
    kvbench report before/result.json --format markdown
    """
    result = results.load(Path(run) if Path(run).is_file() else find_run(run, output_dir).path)
    text = write(result, form or (_BY_NAME.get(out.suffix.lower(), "text") if out else "text"))
    if out is None:
        sys.stdout.write(text)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{out} cannot be written: {error.strerror}", hint="choose another place with -o") from error
    talk(f"report: {out}")
