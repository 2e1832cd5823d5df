"""``kvbench new-evaluator NAME``."""

from __future__ import annotations

from pathlib import Path

import click

from kvbench.authoring import EVALUATOR
from kvbench.cli.new_method import FOLDER, write


@click.command("new-evaluator")
@click.argument("name")
@FOLDER
def new_evaluator(name: str, folder: Path | None) -> None:
    """Write a package with an evaluator NAME of your own: a measure that works as it stands, its test, and the entry point.

    Once it is installed beside kvbench, NAME is in list, run, show, report and compare. The files written go to stdout.

    \b
    kvbench new-evaluator my_measure
    """
    write(EVALUATOR, name, folder, "kvbench list evaluators", f"kvbench run --evals {name}")
