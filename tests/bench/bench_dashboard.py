"""What watching costs: the worker's speed with the full dashboard open, over its speed with no display.

A dashboard that slows what it measures would be a lie in colour. It lives in another process than the worker and draws
seldom, but both share the machine's cores and memory bandwidth, so the share that it takes is measured: the same short run,
once with ``--display none`` and once with ``--display full`` under a pseudo-terminal of 160 × 48, in turn. This script plays
the user's terminal: it reads all that is drawn, answers what terminals are asked, and presses ``q`` once the run is finished.
Speed is that of the perplexity units, whose work is the same in every run; the first unit of each run warms up and is left
out. A terminal emulator's own drawing is not in the figure.

    python tests/bench/bench_dashboard.py [--repeats 5]
    python tests/bench/bench_dashboard.py --repeats 1 --samples 2 --context 32 --continuation 16 --methods knorm
"""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import tempfile
import termios
import time
from argparse import Namespace
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benching import arguments, closing, command, methods, picked, refuse, table, talk

from kvbench.engine.journal import RunFolder
from kvbench.record import events as ev

GOAL = 0.97
COLUMNS, LINES = 160, 48
QUESTION = re.compile(rb"\x1b\[\?(\d+)\$p")
"""A program asks whether its terminal knows a mode."""
KNOWN_MODES = (b"2026",)
"""Synchronised output, as modern terminals have it."""
PATIENCE = 900.0


@dataclass(frozen=True)
class Display:
    """What was measured with one display: tokens a second of each run, seconds of each unit, bytes drawn a run."""

    name: str
    speeds: list[float] = field(default_factory=list)
    units: list[float] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)

    def measure(self, given: Namespace, run: RunFolder) -> None:
        what = picked(given, "model methods samples context continuation") | {"evals": "perplexity", "device": "cpu", "dtype": "float32"}
        asked = command("run", **what, output_dir=run.path.parent, name=run.name, display=self.name)
        if self.name == "full":
            self.drawn.append(_watched(asked, run))
        else:
            subprocess.run(asked, check=True, stdout=subprocess.DEVNULL)
        seconds, tokens = _measured(run)
        self.units.extend(seconds)
        self.speeds.append(tokens / median(seconds))
        talk(f"{run.name}: {self.speeds[-1]:,.1f} tokens/s")

    def row(self) -> dict[str, Any]:
        ends = {"fastest_s": min(self.units), "slowest_s": max(self.units), "units": len(self.units)}
        return {"display": self.name, "tokens_per_s": median(self.speeds), "unit_s": median(self.units), **ends}


def main() -> None:
    given = arguments(
        __doc__, model="embedded:smollm2", methods=methods("snapkv,int8"), samples=4, context=256, continuation=64, repeats=5
    )  # fmt: skip
    if given.samples < 2:
        refuse("--samples must be at least 2: the first warms up")
    none, full = Display("none"), Display("full")
    with tempfile.TemporaryDirectory(prefix="kvbench-dashboard-") as folder:
        for repeat in range(given.repeats):
            for display in (none, full):
                display.measure(given, RunFolder(Path(folder) / f"{display.name}-{repeat}"))
    _report(given, none, full)


def _measured(run: RunFolder) -> tuple[list[float], int]:
    """Seconds of each perplexity unit but the first, and the tokens that pass through the model in one."""
    events, state = run.read(), run.state()
    finished = [e.seconds for e in events if isinstance(e, ev.UnitFinished) and state.units[e.unit].evaluator == "perplexity"]
    if state.status != "finished" or state.spec is None or len(finished) < 2:
        raise RuntimeError(f"run {run.name} did not finish: {state.error}")
    return finished[1:], state.spec.context + len(state.methods) * state.spec.continuation


# -- the user and the terminal


def _watched(asked: list[str], run: RunFolder) -> int:
    """Run ``asked`` on a terminal, leave it when the run is finished, and return the bytes that it drew."""
    terminal, side = pty.openpty()
    termios.tcsetwinsize(side, (LINES, COLUMNS))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    process = subprocess.Popen(asked, stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True)
    os.close(side)
    try:
        drawn = _attend(terminal, process, run)
    finally:
        if process.poll() is None:
            process.kill()
        os.close(terminal)
    if process.wait():
        raise RuntimeError(f"the dashboard ended with exit code {process.returncode}")
    return drawn


def _attend(terminal: int, process: subprocess.Popen[bytes], run: RunFolder) -> int:
    """Read and answer until the program has left the terminal."""
    drawn, deadline, asked_at = 0, time.monotonic() + PATIENCE, 0.0
    while time.monotonic() < deadline:
        ready, _, _ = select.select([terminal], [], [], 0.5)
        if ready:
            screen = _read(terminal)
            drawn += len(screen)
            for mode in QUESTION.findall(screen):
                _press(terminal, b"\x1b[?" + mode + (b";2$y" if mode in KNOWN_MODES else b";0$y"))
            if not screen:
                process.wait(30)
                return drawn
        elif process.poll() is not None:
            return drawn
        if time.monotonic() - asked_at > 2 and run.result.exists() and not run.is_alive():
            asked_at = time.monotonic()
            _press(terminal, b"q")
    raise TimeoutError(f"the dashboard of {run.name} did not end within {PATIENCE:g} s")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux: the last process has closed its side
        return b""


def _press(terminal: int, keys: bytes) -> None:
    with suppress(OSError):  # the program has just left
        os.write(terminal, keys)


def _report(given: Namespace, none: Display, full: Display) -> None:
    rows = [none.row(), full.row()]
    ratio = rows[0]["unit_s"] / rows[1]["unit_s"]
    pairs = [watched / alone for alone, watched in zip(none.speeds, full.speeds, strict=True)]
    names = ("tokens_per_s", "unit_s", "fastest_s", "slowest_s")
    table(rows, {"display": "{display}", **{name: f"{{{name}:.3f}}" for name in names}, "units": "{units:}"})
    print(f"\nfull over none {ratio:.4f} (pairs of runs {min(pairs):.4f} to {max(pairs):.4f}), goal ≥ {GOAL}")
    print(f"drawn: {median(full.drawn) / 1024:,.0f} KiB a run")
    sizes = picked(given, "context continuation samples repeats")
    closing("dashboard", **sizes, ratio=ratio, pairs=pairs, goal=GOAL, met=ratio >= GOAL, drawn_bytes=full.drawn, displays=rows)


if __name__ == "__main__":
    main()
