"""``kvbench run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from kvbench import results
from kvbench.cli import options
from kvbench.cli.following import conclude, drive, talk
from kvbench.cli.question import spec_of
from kvbench.displays.base import choose
from kvbench.engine import start
from kvbench.engine.journal import RunFolder, find_run
from kvbench.errors import ExitCode, UsageError

DTYPES = click.Choice(["auto", "float16", "bfloat16", "float32", "float64"])
WITH_RESUME = frozenset({"resume", "display", "output", "output_dir"})
"""Flags that do not change the question."""


@click.command()
@click.option("--preset", metavar="NAME|FILE", help="A named set of values (kvbench list presets) or a .toml file.  [default: smollm2]")
@click.option("--model", metavar="ID", help="Hub id, local folder or .gguf file, in place of the preset's.")
@click.option("--methods", metavar="LIST", help="all, or names: snapkv,kivi:bits=2,group=32. Controls are always added.")
@click.option("--evals", metavar="LIST", help="Evaluators: perplexity,speed:batch=1+8,memory.")
@click.option("--corpus", metavar="NAME|FILE", help="A named text (kvbench list corpora), .txt or .jsonl.")
@click.option("--data-dir", type=click.Path(exists=True, file_okay=False), help="A mirror, looked at before the hub.  [env: KVBENCH_DATA]")
@click.option("--samples", type=int, help="Windows to score.")
@click.option("--context", type=int, help="Tokens that are prefilled and compressed.")
@click.option("--continuation", type=int, help="Tokens that are scored after them.")
@click.option("--stride", type=int, help="Tokens between window starts.  [default: context + continuation]")
@click.option("--compression-ratio", type=float, help="Fraction removed, for every method that has one: 0.75 is four times smaller.")
@click.option("--budget", metavar="LIST", help="Bytes that every method is to meet: 4x, 14KiB/token, or several: 2x,4x,8x.")
@click.option("--protocol", type=click.Choice(["prefill", "streaming"]), help="Compress after the context, or from the first token on.")
@click.option("--chunk-size", type=int, help="Tokens a step when streaming; 1 is exact.")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1.")
@click.option("--dtype", type=DTYPES, help="Number format of weights and activations.")
@click.option("--cache-dtype", type=DTYPES, help="Number format of the uncompressed cache.")
@click.option("--batch-size", type=int, help="Windows scored at once.")
@click.option("--seed", type=int, help="For random weights and random methods.")
@click.option("--revision", metavar="REV", help="The model's revision on the hub.")
@click.option("--random-weights", is_flag=True, default=None, help="Build the model from its config alone: speed and memory are real.")
@click.option("--name", metavar="NAME", help="The run's folder under --output-dir.  [default: time and model]")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the result file there as well.")
@options.output_dir
@options.display
@click.option("--resume", metavar="RUN", help="Go on with a run that was interrupted or killed.")
@click.option("--dry-run", is_flag=True, help="Print the plan without loading a model.")
@click.pass_context
def run(
    ctx: click.Context, /, *, name: str | None, output: Path | None, output_dir: Path, display: str, resume: str | None,
    dry_run: bool, **flags: Any,
) -> int:  # fmt: skip
    """Compare compression methods on one model and one text.

    Results go to a folder under --output-dir; the table goes to stdout. Flags go over the preset's values.

    \b
    kvbench run
    kvbench run --model Qwen/Qwen2.5-0.5B --corpus wikitext2 --methods snapkv,kivi:bits=2
    kvbench run --budget 2x,4x,8x
    kvbench run --preset qwen7b --random-weights --evals speed,memory
    kvbench run --resume 2026-11-22_14-03-05_smollm2
    """
    _check_output(output)
    if resume is not None:
        _refuse_changes(ctx)
        return _finish(*_resume(find_run(resume, output_dir), display), output)
    spec = spec_of(flags)
    if dry_run:
        from kvbench.cli.preview import preview

        click.echo(preview(spec), nl=False)
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
