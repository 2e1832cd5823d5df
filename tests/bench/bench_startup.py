"""How long the shell waits for ``kvbench --help`` and ``kvbench compare``, beside Python's own start.

A command that people type many times a day must answer at once, and one careless import of torch costs seconds. Times are
wall medians of interleaved runs with warm file caches; the ratios to ``python -c pass`` carry over to other machines.

    python tests/bench/bench_startup.py [RESULT.json] [--repeats 15]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kvbench.record.results import SCHEMA

ROOT = Path(__file__).parent.parent.parent
GOALS = {"kvbench --help": 0.2, "kvbench compare": 0.3}
"""Seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", nargs="?", help="A result file to compare with itself and with a changed copy.")
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        a, b = _pair(Path(given.result) if given.result else _reference(), Path(folder))
        program = [sys.executable, "-m", "kvbench"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "kvbench --help": [*program, "--help"],
            "kvbench compare": [*program, "compare", str(a), str(b)],
        }
        times = _measure(commands, given.repeats)
    _report(times)


def _reference() -> Path | None:
    return next(iter(sorted((ROOT / "bench_results" / "reference").glob("**/result.json"))), None)


def _pair(result: Path | None, folder: Path) -> tuple[Path, Path]:
    """A result and a copy in which every sample is worse by a little, so that every test is really made."""
    document = json.loads(result.read_text()) if result else _made_up()
    paths = folder / "a.json", folder / "b.json"
    paths[0].write_text(json.dumps(document))
    for row in document["results"]:
        for one in row["measured"]:
            one["samples"] = {key: value * (1.01 + 0.001 * (i % 3)) for i, (key, value) in enumerate(one["samples"].items())}
    paths[1].write_text(json.dumps(document))
    return paths


def _made_up() -> dict[str, Any]:
    """Sixteen methods with eight samples and five repeats, where there is no reference result yet."""
    rows = [{"method": f"method_{i}", "status": "done", "audit": "real", "measured": _figures(i)} for i in range(16)]
    spec = {"context": 512, "continuation": 256, "samples": 8}
    parts: dict[str, Any] = {key: {} for key in ("environment", "model", "corpus", "records", "lost")}
    head = {"schema": SCHEMA, "run": "made-up", "complete": True, "kvbench_version": "0", "protocol": "prefill", "spec": spec}
    return {**head, **parts, "baseline_perplexity": None, "seconds": 0.0, "results": rows}


def _figures(i: int) -> list[dict[str, Any]]:
    nll = {str(k): 3.0 + 0.1 * math.sin(7 * i + k) for k in range(8)}
    repeats = {str(k): 0.01 + 0.001 * math.sin(3 * i + k) for k in range(5)}
    common = {"point": "", "unit": "1", "better": "lower", "scale": "linear"}
    return [
        {**common, "metric": "perplexity", "value": 20.0, "evidence": "paired", "samples": nll, "scale": "log"},
        {**common, "metric": "kl_mean", "value": 0.1, "evidence": "paired", "samples": nll},
        {**common, "metric": "stored_bytes", "value": 1e6 + i, "evidence": "exact", "samples": {}, "unit": "bytes"},
        *({**common, "metric": f"time_{n}", "value": 0.01, "evidence": "noisy", "samples": repeats} for n in range(4)),
    ]


def _measure(commands: dict[str, list[str]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds; the first round only warms the file caches and writes bytecode."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    for round_ in range(repeats + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment)
            if round_:
                times[name].append(time.perf_counter() - start)
    return times


def _report(times: dict[str, list[float]]) -> None:
    floor = statistics.median(times["python -c pass"])
    rows = [
        {
            "command": name,
            "median_s": statistics.median(taken),
            "fastest_s": min(taken),
            "ratio": statistics.median(taken) / floor,
            "goal_s": GOALS.get(name),
        }
        for name, taken in times.items()
    ]
    print(tabulate(rows, headers="keys", floatfmt=".3f", missingval=""))
    print(json.dumps({"bench": "startup", "repeats": len(times["python -c pass"]), "commands": rows}))


if __name__ == "__main__":
    main()
