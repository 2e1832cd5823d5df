"""``kvbench verify METHOD``."""

from __future__ import annotations

import click

from kvbench.displays.streams import put, talk
from kvbench.errors import ExitCode
from kvbench.figures import Table
from kvbench.figures.terminal import columns
from kvbench.spec import ModelSpec

COUNTED = 20
"""Steps of a stage up to which each is told."""


@click.command()
@click.argument("method")
@click.option("--model", metavar="ID", help="Also on this model: hub id, folder or .gguf file.  [default: tiny seeded models]")
@click.pass_context
def verify(context: click.Context, method: str, model: str | None) -> None:
    """Check that METHOD does what it says: bytes, audit, and that every path gives the same numbers.

    METHOD is a name with parameters, such as kivi:bits=2. Exit code 9 if a check fails.
    """

    from kvbench.instruments.verify import verify as run_checks

    checks = run_checks(method, _stage, model=ModelSpec(id=model) if model else None)
    rows = [["ok" if c.passed else "FAILED", c.name, _figure(c.figure), _figure(c.limit), c.detail] for c in checks]
    put(f"{columns(Table('checks', '', ['', 'check', 'figure', 'limit', 'detail'], rows, left=5))}\n")
    failed = sum(not c.passed for c in checks)
    talk(f"{len(checks) - failed} of {len(checks)} checks passed")
    if failed:
        context.exit(ExitCode.CHECK)


def _stage(stage: str, done: int = 0, total: int = 0) -> None:
    if 0 < total <= COUNTED:
        talk(f"  {stage}: {done} of {total}")
    elif done == 0:
        talk(f"  {stage}")


def _figure(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
