"""``kvbench show RUN``."""

from __future__ import annotations

from os.path import isfile
from pathlib import Path

import click

from kvbench.cli import options
from kvbench.displays.ending import called, render_run
from kvbench.displays.streams import put, talk
from kvbench.engine.journal import EVENTS, find_run
from kvbench.errors import ResultError
from kvbench.record import results
from kvbench.record.state import RunState, replay
from kvbench.record.unreadable import figures_of


@click.command()
@click.argument("run")
@options.output_dir
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def show(run: str, output_dir: Path, form: str) -> None:
    """Print a run's tables: what it has so far, if it is not finished.

    RUN is a run's folder, its name under --output-dir, or a result file.
    """
    state, name, called_so, file = _read(run, output_dir)
    if state.spec is None:
        raise ResultError(f"run '{name}' has not begun: there is nothing to show", hint=f"kvbench run --resume {run}")
    with figures_of(file):
        text = results.dumps(results.build(state, name)).decode() if form == "json" else render_run(state, called_so)
    put(text)


def _read(run: str, output_dir: Path) -> tuple[RunState, str, str, Path]:
    """From the journal where there is one, else from the result file; the run's name, what commands call it, and the file."""
    if isfile(run):
        result = results.load(Path(run))
        return results.to_state(result), result["run"], run, Path(run)
    folder = find_run(run, output_dir)
    journal = folder.path / EVENTS
    if journal.exists() or not folder.result.exists():
        tail = folder.tail()
        state = replay(tail.poll())
        if tail.damage:
            talk(f"warning: {journal}: {tail.damage}")
        return state, folder.name, called(folder), journal
    return results.to_state(results.load(folder.path)), folder.name, called(folder), folder.result
