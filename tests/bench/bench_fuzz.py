"""Damage every kind of file that kvbench reads, and see that each ends as it should: read, or refused with a reason.

    python tests/bench/bench_fuzz.py                       all readers, 12,000 inputs
    python tests/bench/bench_fuzz.py journal --count 500   one reader
    python tests/bench/bench_fuzz.py result --only 417     one input again, with what it said

An input is damaged by the numbers of its seed, so that it can be made again. It counts as *unexpected* if kvbench met an
error that no message was written for (exit code 70), returned 1 without a threshold, or broke out of ``main``; as a *hang* if it
took longer than the limit, in seconds of the processor or six times that by the clock. Readers run in this process; one in so
many inputs is given to a process of its own as well.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import subprocess
import tempfile
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benching import Column, arguments, closing, command, option, table, talk, timed
from damaged import READERS, Reader

from kvbench import cli

LIMIT = 10.0
"""Seconds of the processor that an input may take."""
COLUMNS: dict[str, Column] = {
    "reader": "{reader}", "inputs": "{inputs:,}", "unexpected": "{unexpected:}", "hangs": "{hangs:}", "processes": "{processes:}",
    "slowest s": "{slowest_s:.2f}", "exit codes": "{codes}",
}  # fmt: skip


class Hang(BaseException):
    """The alarm rang."""


@dataclass
class Tally:
    """What became of one reader's inputs; ``last`` is what was asked, the code, where it broke and what it said."""

    codes: Counter[int] = field(default_factory=Counter)
    unexpected: list[tuple[int, str]] = field(default_factory=list)
    hangs: list[int] = field(default_factory=list)
    processes: int = 0
    slowest_s: float = 0.0
    last: tuple[list[str], int | None, str, str] = ([], None, "", "")

    def figures(self) -> dict[str, Any]:
        codes = {str(code): count for code, count in sorted(self.codes.items())}
        inputs = sum(self.codes.values()) + len(self.hangs)
        return {"inputs": inputs, "unexpected": len(self.unexpected), "hangs": len(self.hangs), "codes": codes}


def judged(reader: Reader, arguments: list[str], limit: float) -> tuple[int | None, str, str]:
    """Exit code (``None``: it hung), where it broke if it did, and what it said."""
    broke: list[str] = []

    def unexpected(error: BaseException) -> int:
        last = traceback.extract_tb(error.__traceback__)[-1]
        broke.append(f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:80]}")
        return 70

    def ring(number: int, frame: object) -> None:
        raise Hang

    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, ring)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), mock.patch.object(cli, "_unexpected", unexpected):
        signal.setitimer(signal.ITIMER_PROF, limit)
        signal.setitimer(signal.ITIMER_REAL, 6 * limit)
        try:
            code: int | None = reader.call(arguments)
        except Hang:
            code = None
        except BaseException as error:
            code = unexpected(error)
        finally:
            for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
                signal.setitimer(timer, 0)
    if code == 1 and "failed: " not in said.getvalue():
        broke.append("exit code 1 without a threshold")
    return code, broke[0] if broke else "", said.getvalue()


def in_a_process(arguments: list[str], limit: float) -> bool:
    """Whether the same input ends well in a process of its own."""
    try:
        done = subprocess.run(command(*arguments), capture_output=True, timeout=6 * limit, check=False)
    except (subprocess.TimeoutExpired, ValueError):  # an argument that no process can be given
        return True
    return done.returncode in (0, 1, 2, 3, 4, 5, 6, 7, 130) and b"Traceback" not in done.stderr


def campaign(name: str, inputs: Sequence[int], seed: int, limit: float, every: int) -> Tally:
    """Give these inputs to one reader."""
    import kvbench.caches.compat  # noqa: F401 (what takes long to import is no input's time, and comes after HF_HUB_OFFLINE)

    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        reader = READERS[name][0](Path(folder))
        for index in inputs:
            asked = reader.make(random.Random(f"{name} {seed} {index}"))
            (code, broke, said), seconds = timed(partial(judged, reader, asked, limit))
            tally.slowest_s, tally.last = max(tally.slowest_s, seconds), (asked, code, broke, said)
            if code is None:
                tally.hangs.append(index)
                continue
            tally.codes[code] += 1
            if broke:
                tally.unexpected.append((index, broke))
            if every and index % every == 0 and asked[0] in ("show", "report", "compare"):
                tally.processes += 1
                if not in_a_process(asked, limit):
                    tally.unexpected.append((index, "in a process of its own"))
    return tally


def main() -> None:
    given = arguments(
        __doc__, readers={"nargs": "*", "choices": [*READERS, []], "help": "default: all"}, count=option(None, "inputs a reader", type=int),
        seed=0, limit=option(LIMIT, "seconds an input"), every=option(200, "one in so many runs in a process of its own too"),
        only=option(None, "one input of one reader, with what it said", type=int),
    )  # fmt: skip
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    names = given.readers or [*READERS]
    if given.only is not None:
        print(*campaign(names[0], [given.only], given.seed, given.limit, 0).last, sep="\n")
        return
    found = {}
    for name in names:
        found[name] = campaign(name, range(given.count or READERS[name][1]), given.seed, given.limit, given.every)
        talk(f"{name}: {found[name].figures()}")
    table([{"reader": name, **vars(of), **of.figures()} for name, of in found.items()], COLUMNS)
    for name, of in found.items():
        for broke, many in Counter(text for _, text in of.unexpected).most_common(20):
            print(f"{name}: {many:>4} × {broke}  (first: --only {next(i for i, text in of.unexpected if text == broke)})")
        for index in of.hangs[:10]:
            print(f"{name}: hang: --only {index}")
    figures = {name: of.figures() for name, of in found.items()}
    total = {key: sum(of[key] for of in figures.values()) for key in ("inputs", "unexpected", "hangs")}
    closing("fuzz", seed=given.seed, **total, readers=figures)


if __name__ == "__main__":
    main()
