"""``kvbench sweep``."""

from __future__ import annotations

from typing import Any

import click

from kvbench.cli import options
from kvbench.cli.question import sweep_of
from kvbench.cli.run import carry_out
from kvbench.sweeps import ABLATIONS


@click.command()
@click.option("--method", multiple=True, metavar="NAME", help="What to sweep; several times for several.")
@click.option("--over", multiple=True, metavar="PARAMETER=LIST", help="An axis: rank=32,48,64; several times for several.")
@click.option("--ablation", metavar="NAME", help=f"A named sweep: {', '.join(ABLATIONS)}. --over puts other values on its axes.")
@click.option("--methods", metavar="LIST", help="Methods to run beside the sweep, as they are.")
@options.question
@options.outcome
@click.pass_context
def sweep(ctx: click.Context, /, *, dry_run: bool, **flags: Any) -> int:
    """Run methods at every combination of some parameters' values.

    An axis is any parameter of the methods; +PARAMETER is of what stores the tokens, in NAME+NAME. Every row is measured at
    each length of --over context=LIST and each batch of --over batch=LIST. Else it is a run like others: one folder, one
    result, resumed the same way.

    \b
    kvbench sweep --method v_lowrank --over rank=32,48,64 --over bits=4,8
    kvbench sweep --method snapkv+int4 --over compression_ratio=0.25,0.5 --over +group=32,64
    kvbench sweep --method kivi --over bits=2,4 --over context=512,1024 --evals perplexity,memory
    kvbench sweep --ablation rank --over rank=8,16,32
    """
    return carry_out(ctx, flags, sweep_of, dry_run=dry_run)
