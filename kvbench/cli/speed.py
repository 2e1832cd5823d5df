"""``kvbench speed``."""

from __future__ import annotations

import re
from typing import Any

import click

from kvbench.cli import options
from kvbench.cli.question import spec_of
from kvbench.cli.run import carry_out
from kvbench.errors import UsageError
from kvbench.spec import RunSpec

_NUMBER = re.compile(r"0*[1-9][0-9]{0,17}")
OF_TEXT = ("evals", "corpus", "data_dir", "samples", "context", "continuation", "stride", "batch_size")
"""Questions of a run that a timing does not ask."""


@click.command()
@click.option("--methods", metavar="LIST", help="all, or names: int8,kivi:bits=2. Controls are always added.")
@click.option("--batch", metavar="LIST", help="Sequences at once: 1,8,32.  [default: 1]")
@click.option("--context", metavar="LIST", help="Prompt lengths, tokens: 2048,32768.  [default: the preset's]")
@click.option("--path", type=click.Choice(["auto", "fused", "reference"]), help="How stored bytes are read.  [default: auto]")
@click.option("--fill", type=click.Choice(["prefill", "random"]), help="random: fill caches without a prefill.  [default: prefill]")
@click.option("--steps", type=int, help="Decode steps timed.")
@click.option("--repeats", type=int, help="Timed repeats.")
@click.option("--warmup", type=int, help="Repeats before them, not counted.")
@click.option("--find-max", type=click.Choice(["batch", "context"]), help="Find the largest that fits, by trying, in place of timing.")
@click.option("--most", type=int, help="--find-max: where the search ends.")
@click.option("--limit-gib", type=float, help="--find-max: GiB that a cache may take; else all that is free.")
@options.question_without(*OF_TEXT)
@options.outcome
@click.pass_context
def speed(ctx: click.Context, /, *, dry_run: bool, **flags: Any) -> int:
    """Time decoding by batch and context, beside what the bytes allow; or find what fits.

    Every method at every --batch with every --context: tokens a second, its ratio to the baseline, and the share of the byte
    roofline that is reached (weights and stored bytes read once a step at the bandwidth of a copy, measured in the same run).
    A point that runs out of memory says so, and the others go on.

    \b
    kvbench speed --preset qwen7b --random-weights --methods baseline,int8,int4 --batch 1,8 --context 2048,32768
    kvbench speed --preset qwen7b --random-weights --methods all --batch 32 --context 32768 --fill random
    kvbench speed --preset qwen7b --random-weights --methods int4 --find-max batch --context 32768
    kvbench speed --preset qwen7b --random-weights --methods int4 --find-max context --batch 8
    """
    return carry_out(ctx, flags, timing_of, dry_run=dry_run)


def timing_of(flags: dict[str, Any]) -> RunSpec:
    """The question of a timing: a run of ``speed``, or with ``find_max`` of ``capacity``, alone.

    Raises:
        UsageError: a flag of the one that was given to the other, or a list that is none.
    """
    given = dict(flags)
    own = {
        key: given.pop(key, None)
        for key in ("batch", "context", "path", "fill", "steps", "repeats", "warmup", "find_max", "most", "limit_gib")
    }
    asked = {key: value for key, value in own.items() if value is not None}
    lists: dict[str, list[int]] = {key: _numbers(key, asked.pop(key)) for key in ("batch", "context") if key in asked}
    evaluator = _capacity(asked, lists) if "find_max" in asked else _speed(asked, lists)
    sizes = {"context": lists["context"][0]} if "context" in lists and asked.get("find_max") != "context" else {}
    return spec_of({**given, **sizes, "evals": evaluator, "samples": 1, "continuation": 1, "batch_size": 1}, are_the_users=False)


def _numbers(name: str, text: str) -> list[int]:
    """``1,8`` → [1, 8].

    Raises:
        UsageError: an entry that is no positive whole number.
    """
    entries = [part.strip() for part in text.split(",")]
    if not all(_NUMBER.fullmatch(entry) for entry in entries):
        raise UsageError(
            f"--{name} {text} is no list of whole numbers", hint=f"for example --{name} {'1,8' if name == 'batch' else '2048,32768'}"
        )
    return [int(entry) for entry in entries]


def _speed(asked: dict[str, Any], lists: dict[str, list[int]]) -> str:
    for key in ("most", "limit_gib"):
        if key in asked:
            raise UsageError(f"--{key.replace('_', '-')} is of --find-max", hint="add --find-max batch or --find-max context")
    return _written("speed", {**{key: "+".join(map(str, values)) for key, values in lists.items()}, **asked})


def _capacity(asked: dict[str, Any], lists: dict[str, list[int]]) -> str:
    find = asked["find_max"]
    for key in ("fill", "repeats", "warmup"):
        if key in asked:
            raise UsageError(f"--{key} is of a timing, and --find-max times nothing", hint=f"leave --{key} out")
    if find in lists:
        raise UsageError(f"--{find} is what --find-max {find} finds", hint=f"--most {lists[find][-1]} ends the search there")
    fixed = {key: values[0] for key, values in lists.items()}
    several = next((key for key, values in lists.items() if len(values) > 1), None)
    if several is not None:
        raise UsageError(f"--find-max {find} takes one --{several}", hint=f"--{several} {fixed[several]}")
    return _written("capacity", {**fixed, **{("find" if key == "find_max" else key): value for key, value in asked.items()}})


def _written(name: str, values: dict[str, Any]) -> str:
    return ":".join(filter(None, (name, ",".join(f"{key}={value}" for key, value in values.items()))))
