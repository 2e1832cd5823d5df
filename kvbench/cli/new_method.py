"""``kvbench new-method NAME``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from kvbench.authoring import METHOD, Kind, default_folder, write_package
from kvbench.displays.streams import put, talk

FOLDER = click.option(
    "--folder", type=click.Path(path_type=Path), metavar="DIR", help="What to make and write to.  [default: kvbench-NAME]"
)


@click.command("new-method")
@click.argument("name")
@FOLDER
def new_method(name: str, folder: Path | None) -> None:
    """Write a package with a method NAME of your own: a score that works as it stands, its test, and the entry point.

    Once it is installed beside kvbench, NAME is in list, run and verify. The files written go to stdout.

    \b
    kvbench new-method my_score
    """
    write(METHOD, name, folder, f"kvbench verify {name}", f"kvbench run --methods {name}")


def write(kind: Kind, name: str, folder: Path | None, *then: str) -> None:
    """Write a package, and say what comes next."""
    for path in write_package(name, folder, kind):
        put(f"{path}\n")
    talk("next:")
    for command in (f"python -m pip install -e {shlex.quote(str(folder or default_folder(name)))}", *then):
        talk(f"  {command}")
    talk(f"guide: {kind.guide}")
