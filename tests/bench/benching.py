"""What the scripts beside this one share: arguments, clocks, commands, memory, a table and the closing line.

A script measures records. People read them in a table, whose columns say how a record's fields are written; programs read the
last line, one JSON object that holds them whole. What is said on the way goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import string
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tabulate import tabulate

from kvbench.formats import NONE

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "bench_results" / "reference"
T = TypeVar("T")
U = TypeVar("U")
Record = Mapping[str, Any]
Column = str | Callable[[Record], str]
"""A cell's text with the record's fields in braces, ``{nll:.3f}`` (a dash where that is not known), or what makes it of the record."""


def arguments(doc: str | None, **options: Any) -> argparse.Namespace:
    """What the command line says; the script's docstring is its ``--help``.

    Args:
        options: Name → default, whose type is the option's (``False`` is a switch), or a dict of what ``add_argument`` takes.
            One with ``nargs`` is written without its name.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, given in options.items():
        asked = given if isinstance(given, dict) else {"default": given}
        default = asked.get("default")
        if default is False:
            asked = {"action": "store_true", **asked}
        elif default is not None:
            asked = {"type": type(default), **asked}
        parser.add_argument(name if "nargs" in asked else f"--{name.replace('_', '-')}", **asked)
    return parser.parse_args()


def option(default: object, text: str, **more: Any) -> dict[str, Any]:
    """An option of :func:`arguments` that says what it is."""
    return {"default": default, "help": text, **more}


def methods(default: str) -> dict[str, Any]:
    """The option of rows to measure."""
    return option(default, "The controls, baseline and random, are always among them.")


def picked(given: argparse.Namespace, names: str) -> dict[str, Any]:
    """Some of the arguments by name."""
    return {name: getattr(given, name) for name in names.split()}


def refuse(reason: str) -> NoReturn:
    """End as argparse does where arguments do not go together."""
    print(f"{Path(sys.argv[0]).name}: error: {reason}", file=sys.stderr)
    raise SystemExit(2)


def command(*words: object, **options: object) -> list[str]:
    """``kvbench`` with this interpreter: ``command("run", samples=4)`` is ``kvbench run --samples 4``."""
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    return [sys.executable, "-m", "kvbench", *map(str, (*words, *flags))]


def timed(action: Callable[[], T], clock: Callable[[], float] = time.perf_counter) -> tuple[T, float]:
    """What ``action`` returns, and its seconds by ``clock``."""
    started = clock()
    found = action()
    return found, clock() - started


def in_turn(one: Callable[[], T], other: Callable[[], U], *, other_first: bool) -> tuple[T, U]:
    """What both return. Sides that take turns at going first share alike what the machine does beside."""
    if not other_first:
        return one(), other()
    found = other()
    return one(), found


def resident() -> int:
    """Bytes of memory that this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def highest_resident() -> int:
    """Bytes at most, so far. Linux says it of this process alone, ``getrusage`` begins where the parent stood."""
    try:
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def talk(*words: object) -> None:
    """Progress, to stderr and at once."""
    print(*words, file=sys.stderr, flush=True)


def table(rows: Iterable[Record], columns: Mapping[str, Column]) -> None:
    """One record a line; ``columns`` are headings with what stands below them."""
    body = [[_cell(column, row) for column in columns.values()] for row in rows]
    align = ["left" if isinstance(column, str) and ":" not in column else "right" for column in columns.values()]
    print(tabulate(body, list(columns), colalign=align if body else None, disable_numparse=True))


def _cell(column: Column, row: Record) -> str:
    try:
        return _FORM.vformat(column, (), row) if isinstance(column, str) else column(row)
    except (LookupError, TypeError):
        return NONE


class _Form(string.Formatter):
    """Refuses what is not known, where Python's own writes ``None``."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            raise TypeError("not known")
        return str(super().format_field(value, format_spec))


_FORM = _Form()


def listing(title: str, facts: Record) -> None:
    """Names and numbers, one a line."""
    print(tabulate(facts.items(), [title, ""]))


def closing(bench: str, **facts: Any) -> None:
    """The last line: what was found, and what it was found on."""
    print(json.dumps({"bench": bench, **facts, "machine": machine()}))


def machine() -> dict[str, Any]:
    """What times depend on beside the code; torch is asked only where the script has it."""
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return {
        "python": platform.python_version(), "processor": platform.machine(), "cores": len(os.sched_getaffinity(0)),
        "torch": None if torch is None else torch.__version__, "threads": None if torch is None else torch.get_num_threads(), "gpu": gpu,
    }  # fmt: skip
