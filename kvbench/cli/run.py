"""``kvbench run``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from kvbench.cli import options
from kvbench.cli.following import conclude, drive
from kvbench.cli.question import spec_of
from kvbench.displays.choosing import choose
from kvbench.displays.streams import put, talk
from kvbench.engine import start
from kvbench.engine.journal import RunFolder, find_run
from kvbench.errors import ExitCode, UsageError
from kvbench.models.gguf.early import refuse_early
from kvbench.record import results
from kvbench.spec import RunSpec

WITH_RESUME = frozenset({"resume", "display", "output", "output_dir"})
"""Flags that do not change the question."""


@click.command()
@click.option("--methods", metavar="LIST", help="all, or names: snapkv,kivi:bits=2,group=32. Controls are always added.")
@options.question
@options.outcome
@click.pass_context
def run(ctx: click.Context, /, *, dry_run: bool, **flags: Any) -> int:
    """Compare compression methods on one model and one text.

    Results go to a folder under --output-dir; the table goes to stdout. Flags go over the preset's values.

    \b
    kvbench run
    kvbench run --model Qwen/Qwen2.5-0.5B --corpus wikitext2 --methods snapkv,kivi:bits=2
    kvbench run --evals extended,tasks:questions=20
    kvbench run --budget 2x,4x,8x
    kvbench run --preset qwen7b --random-weights --evals speed,memory
    kvbench run --resume 2026-11-22_14-03-05_smollm2
    """
    return carry_out(ctx, flags, spec_of, dry_run=dry_run)


def carry_out(ctx: click.Context, flags: dict[str, Any], ask: Callable[[dict[str, Any]], RunSpec], *, dry_run: bool) -> int:
    """Run, resume or preview what the flags of ``run`` or ``sweep`` ask for; returns the exit code.

    Args:
        flags: Those of :func:`options.outcome`, which say what becomes of the run, and those that ``ask`` makes the question of.
    """
    name, output, output_dir, display, resume = (flags.pop(key) for key in ("name", "output", "output_dir", "display", "resume"))
    _check_output(output)
    if resume is not None:
        _refuse_changes(ctx)
        return _finish(*_resume(find_run(resume, output_dir), display), output)
    spec = ask(flags)
    for note in spec.notes:
        talk(note)
    refuse_early(spec.model)
    if dry_run:
        from kvbench.cli.preview import preview

        put(preview(spec))
        return int(ExitCode.OK)
    shown = choose(display)
    folder = start.create(spec, output_dir, name)
    return _finish(folder, drive(folder, shown, launch=True), output)


def _resume(folder: RunFolder, display: str) -> tuple[RunFolder, int]:
    """Go on with a run, join one that is going on, or show one that is finished."""
    how, shown = start.resume(folder), choose(display)
    if how == "finished":
        talk(f"{folder.name} is finished: nothing is left to do")
        return folder, conclude(folder, shown)
    if how == "attached":
        talk(f"{folder.name} is still going on: attached to it")
    return folder, drive(folder, shown, launch=False)


def _finish(folder: RunFolder, code: int, output: Path | None) -> int:
    """Copy the result where it was asked for."""
    if output is not None and code == ExitCode.OK:
        if folder.is_alive():
            talk(f"{output} is not written: the run goes on")
        else:
            results.save(results.load(folder.path), output)
    return code


def _check_output(output: Path | None) -> None:
    if output is not None and not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.parent}", hint=f"mkdir -p {output.parent}")


def _refuse_changes(ctx: click.Context) -> None:
    """A resumed run answers the question that it was started with.

    Raises:
        UsageError: names the flag that would change it.
    """
    for parameter in ctx.command.params:
        given = parameter.name is not None and ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        if given and parameter.name not in WITH_RESUME:
            raise UsageError(f"{parameter.opts[0]} cannot change a run that was begun", hint="leave it out, or start a new run")
