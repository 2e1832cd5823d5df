"""How long the shell waits for ``kvbench --help`` and ``kvbench compare``, beside Python's own start.

A command that people type many times a day must answer at once, and one careless import of torch costs seconds. Times are
wall medians of interleaved runs with warm file caches; the ratios to ``python -c pass`` carry over to other machines.

    python tests/bench/bench_startup.py [RESULT.json] [--repeats 15]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import median

from benching import REFERENCE, arguments, closing, command, option, table, timed

GOALS = {"kvbench --help": 0.2, "kvbench compare": 0.3}
"""Seconds."""
COLUMNS = {
    "command": "{command}", "median_s": "{median_s:.3f}", "fastest_s": "{fastest_s:.3f}", "ratio": "{ratio:.3f}", "goal_s": "{goal_s:.3f}",
}  # fmt: skip


def main() -> None:
    result = option(REFERENCE / "result.json", "A result file to compare with itself and with a changed copy.", nargs="?")
    given = arguments(__doc__, result=result, repeats=15)
    with tempfile.TemporaryDirectory() as folder:
        pair = _pair(given.result, Path(folder))
        python = {"python -c pass": [sys.executable, "-c", "pass"]}
        times = _measure({**python, "kvbench --help": command("--help"), "kvbench compare": command("compare", *pair)}, given.repeats)
    floor = median(times["python -c pass"])
    rows = [
        {"command": name, "median_s": median(taken), "fastest_s": min(taken), "ratio": median(taken) / floor, "goal_s": GOALS.get(name)}
        for name, taken in times.items()
    ]
    table(rows, COLUMNS)
    closing("startup", repeats=given.repeats, commands=rows)


def _pair(result: Path, folder: Path) -> tuple[Path, Path]:
    """A result and a copy in which every sample is worse by a little, so that every test is really made."""
    document = json.loads(result.read_text())
    paths = folder / "a.json", folder / "b.json"
    paths[0].write_text(json.dumps(document))
    for row in document["results"]:
        for one in row["measured"]:
            one["samples"] = {key: value * (1.01 + 0.001 * (i % 3)) for i, (key, value) in enumerate(one["samples"].items())}
    paths[1].write_text(json.dumps(document))
    return paths


def _measure(commands: dict[str, list[str]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds; the first round only warms the file caches and writes bytecode."""
    times = defaultdict(list)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    for round_ in range(repeats + 1):
        for name, asked in commands.items():
            _, seconds = timed(partial(subprocess.run, asked, check=True, capture_output=True, env=environment))
            if round_:
                times[name].append(seconds)
    return times


if __name__ == "__main__":
    main()
