"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from kvbench.displays.choosing import NAMES

F = TypeVar("F", bound=Callable[..., Any])
DTYPES = click.Choice(["auto", "float16", "bfloat16", "float32", "float64"])


def seconds(text: str) -> float | str:
    """``auto``, ``off``, or seconds.

    Raises:
        BadParameter: none of them.
    """
    if text in ("auto", "off"):
        return text
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"'{text}' is not auto, off or a number of seconds") from None


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
_QUESTION = {
    "preset": click.option(
        "--preset", metavar="NAME|FILE", help="A named set of values (kvbench list presets) or a .toml file.  [default: smollm2]"
    ),
    "model": click.option("--model", metavar="ID", help="Hub id, local folder or .gguf file, in place of the preset's."),
    "evals": click.option("--evals", metavar="LIST", help="A suite or evaluators: essential; perplexity,speed:batch=1+8,memory."),
    "corpus": click.option("--corpus", metavar="NAME|FILE", help="A named text (kvbench list corpora), .txt or .jsonl."),
    "data_dir": click.option(
        "--data-dir", type=click.Path(exists=True, file_okay=False), help="A mirror, looked at before the hub.  [env: KVBENCH_DATA]"
    ),
    "samples": click.option("--samples", type=int, help="Windows to score."),
    "context": click.option("--context", type=int, help="Tokens that are prefilled and compressed."),
    "continuation": click.option("--continuation", type=int, help="Tokens that are scored after them."),
    "stride": click.option("--stride", type=int, help="Tokens between window starts.  [default: one window behind the other]"),
    "bos": click.option(
        "--bos", type=click.Choice(["auto", "on", "off"]), help="Begin every window with BOS, or none.  [default: as the tokenizer does]"
    ),
    "compression_ratio": click.option(
        "--compression-ratio", type=float, help="Fraction removed, for every method that has one: 0.75 is four times smaller."
    ),
    "budget": click.option("--budget", metavar="LIST", help="Bytes that every method is to meet: 4x, 14KiB/token, or several: 2x,4x,8x."),
    "protocol": click.option(
        "--protocol", type=click.Choice(["prefill", "streaming"]), help="Compress after the context, or from the first token on."
    ),
    "chunk_size": click.option("--chunk-size", type=int, help="Tokens a step when streaming; 1 is exact."),
    "device": click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1."),
    "dtype": click.option("--dtype", type=DTYPES, help="Number format of weights and activations."),
    "cache_dtype": click.option("--cache-dtype", type=DTYPES, help="Number format of the uncompressed cache; auto: 16 bit."),
    "batch_size": click.option("--batch-size", type=int, help="Windows scored at once."),
    "method_timeout": click.option(
        "--method-timeout",
        type=seconds,
        metavar="auto|off|SECONDS",
        help="What one method may take in one unit before its row fails; auto: 20 times the slowest so far, at least 10 minutes.",
    ),
    "seed": click.option("--seed", type=int, help="For random weights and random methods."),
    "revision": click.option("--revision", metavar="REV", help="The model's revision on the hub."),
    "random_weights": click.option(
        "--random-weights", is_flag=True, default=None, help="Build the model from its config alone: speed and memory are real."
    ),
}
_OUTCOME = (
    click.option("--name", metavar="NAME", help="The run's folder under --output-dir.  [default: time and model]"),
    click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the result file there as well."),
    output_dir,
    display,
    click.option("--resume", metavar="RUN", help="Go on with a run that was interrupted or killed."),
    click.option("--dry-run", is_flag=True, help="Print the plan and the bytes to expect; nothing is loaded or computed."),
)


def question(command: F) -> F:
    """What a run asks, but for its methods."""
    return _all(command, list(_QUESTION.values()))


def question_without(*names: str) -> Callable[[F], F]:
    """As :func:`question`, but for some of it."""
    return partial(_all, found=[option for name, option in _QUESTION.items() if name not in names])


def outcome(command: F) -> F:
    """What becomes of a run."""
    return _all(command, _OUTCOME)


def _all(command: F, found: Sequence[Callable[[F], F]]) -> F:
    """Decorators in the order in which ``--help`` shows them."""
    for option in reversed(found):
        command = option(command)
    return command
