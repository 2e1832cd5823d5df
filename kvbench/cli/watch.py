"""``kvbench watch RUN``."""

from __future__ import annotations

from pathlib import Path

import click

from kvbench.cli import options
from kvbench.cli.following import conclude, resume_command
from kvbench.displays.choosing import choose
from kvbench.displays.streams import talk
from kvbench.engine import start
from kvbench.engine.journal import EVENTS, find_run
from kvbench.errors import ExitCode, ResultError


@click.command()
@click.argument("run")
@options.output_dir
@options.display
def watch(run: str, output_dir: Path, display: str) -> int:
    """Attach to a run that is going on, or replay one that is over.

    RUN is a run's folder or its name under --output-dir. Leaving (q, or Ctrl-C) does not end the run.
    """
    folder, shown = find_run(run, output_dir), choose(display)
    if folder.result.exists() and not (folder.path / EVENTS).exists():
        raise ResultError(f"{folder.path} has a result and no journal to follow", hint=f"kvbench show {folder.path}")
    live = folder.is_alive()
    try:
        outcome = shown.watch(folder, live=live)
    except KeyboardInterrupt:
        outcome = "detached"
    if outcome == "cancel" and folder.is_alive():
        start.stop(folder)
        talk(f"interrupted; go on with: {resume_command(folder)}")
        return int(ExitCode.INTERRUPTED)
    if folder.is_alive():
        talk(f"the run goes on: kvbench watch {folder.path}")
        return int(ExitCode.OK)
    return conclude(folder, shown)
