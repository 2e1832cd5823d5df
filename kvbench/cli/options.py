"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

from kvbench.displays.base import NAMES

output_dir = click.option(
    "--output-dir", type=click.Path(file_okay=False, path_type=Path), default="bench_results", show_default=True, help="Where runs are."
)
display = click.option(
    "--display",
    type=click.Choice(NAMES),
    default="auto",
    show_default=True,
    help="full: the dashboard; plain: lines and a table; json: the result on stdout; none. auto: full on a terminal, else plain.",
)
