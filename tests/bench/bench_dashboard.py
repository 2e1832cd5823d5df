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

import argparse
import fcntl
import json
import os
import pty
import re
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from tabulate import tabulate

from kvbench.engine.journal import RunFolder
from kvbench.record import events as ev

GOAL = 0.97
DISPLAYS = ("none", "full")
COLUMNS, LINES = 160, 48
QUESTION = re.compile(rb"\x1b\[\?(\d+)\$p")
"""A program asks whether its terminal knows a mode."""
KNOWN_MODES = (b"2026",)
"""Synchronised output, as modern terminals have it."""
PATIENCE = 900.0


def main() -> None:
    given = _arguments()
    speeds: dict[str, list[float]] = {display: [] for display in DISPLAYS}
    units: dict[str, list[float]] = {display: [] for display in DISPLAYS}
    drawn: list[int] = []
    with tempfile.TemporaryDirectory(prefix="kvbench-dashboard-") as folder:
        for repeat in range(given.repeats):
            for display in DISPLAYS:
                run = RunFolder(Path(folder) / f"{display}-{repeat}")
                if display == "full":
                    drawn.append(_watched(_command(given, run, display), run))
                else:
                    subprocess.run(_command(given, run, display), check=True, stdout=subprocess.DEVNULL)
                seconds, tokens = _measured(run)
                units[display] += seconds
                speeds[display].append(tokens / statistics.median(seconds))
                print(f"{run.name}: {speeds[display][-1]:,.1f} tokens/s", file=sys.stderr)
    _report(given, speeds, units, drawn)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2")
    parser.add_argument("--methods", default="snapkv,int8", help="The controls, baseline and random, are always among them.")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--continuation", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    if given.samples < 2:
        parser.error("--samples must be at least 2: the first warms up")
    return given


def _command(given: argparse.Namespace, run: RunFolder, display: str) -> list[str]:
    sizes = ["--samples", str(given.samples), "--context", str(given.context), "--continuation", str(given.continuation)]
    what = ["--model", given.model, "--methods", given.methods, "--evals", "perplexity", "--device", "cpu", "--dtype", "float32"]
    where = ["--output-dir", str(run.path.parent), "--name", run.name, "--display", display]
    return [sys.executable, "-m", "kvbench", "run", *what, *sizes, *where]


def _measured(run: RunFolder) -> tuple[list[float], int]:
    """Seconds of each perplexity unit but the first, and the tokens that pass through the model in one."""
    events, state = run.read(), run.state()
    finished = [e.seconds for e in events if isinstance(e, ev.UnitFinished) and state.units[e.unit].evaluator == "perplexity"]
    if state.status != "finished" or state.spec is None or len(finished) < 2:
        raise RuntimeError(f"run {run.name} did not finish: {state.error}")
    return finished[1:], state.spec.context + len(state.methods) * state.spec.continuation


# -- the user and the terminal


def _watched(command: list[str], run: RunFolder) -> int:
    """Run ``command`` on a terminal, leave it when the run is finished, and return the bytes that it drew."""
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True)
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
            _answer(terminal, screen)
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


def _answer(terminal: int, screen: bytes) -> None:
    for mode in QUESTION.findall(screen):
        _press(terminal, b"\x1b[?" + mode + (b";2$y" if mode in KNOWN_MODES else b";0$y"))


def _press(terminal: int, keys: bytes) -> None:
    try:
        os.write(terminal, keys)
    except OSError:
        return  # the program has just left


def _report(given: argparse.Namespace, speeds: dict[str, list[float]], units: dict[str, list[float]], drawn: list[int]) -> None:
    middle = {display: statistics.median(seconds) for display, seconds in units.items()}
    ratio = middle["none"] / middle["full"]
    pairs = [full / none for none, full in zip(speeds["none"], speeds["full"], strict=True)]
    rows = [
        {
            "display": display,
            "tokens_per_s": statistics.median(speeds[display]),
            "unit_s": middle[display],
            "fastest_s": min(units[display]),
            "slowest_s": max(units[display]),
            "units": len(units[display]),
        }
        for display in DISPLAYS
    ]
    print(tabulate(rows, headers="keys", floatfmt=".3f"))
    print(f"\nfull over none {ratio:.4f} (pairs of runs {min(pairs):.4f} to {max(pairs):.4f}), goal ≥ {GOAL}")
    print(f"drawn: {statistics.median(drawn) / 1024:,.0f} KiB a run")
    sizes = {"context": given.context, "continuation": given.continuation, "samples": given.samples, "repeats": given.repeats}
    figures = {"ratio": ratio, "pairs": pairs, "goal": GOAL, "met": ratio >= GOAL, "drawn_bytes": drawn, "displays": rows}
    print(json.dumps({"bench": "dashboard", **sizes, **figures}))


if __name__ == "__main__":
    main()
