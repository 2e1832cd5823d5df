"""What a needle grid of all methods costs: 5 lengths × 5 depths for 12 methods on the embedded model, as one run does it.

A needle test is usually run method by method, cell by cell, a prefill for each. Here one prefill of a cell serves all methods,
and their answers are decoded together, a forward a token, so that a grid is little more than the baseline's alone. The time
is of the whole command, loading, audit and result file included; ``--evals`` parameters are those of ``needle``.

    python tests/bench/bench_needle.py
    python tests/bench/bench_needle.py --lengths 256+512 --depths 3 --methods snapkv,int4
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kvbench.engine.journal import RunFolder
from kvbench.figures import Table
from kvbench.record import events as ev
from kvbench.record.state import replay
from kvbench.record.summary import figures
from kvbench.report.text import draw

METHODS = "streaming_llm,knorm,keydiff,tova,h2o,snapkv,pyramidkv,adakv,int8,int4,kivi"
"""With the baseline, 12; random eviction, the control that every run has, goes beside them."""
LENGTHS, GOAL_SECONDS = "256+512+1024+1536+2048", 600


def main() -> None:
    given = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(_command(given, folder), check=True, stdout=sys.stderr)
        seconds = time.perf_counter() - started
        events = RunFolder(next(Path(folder).iterdir())).read()
    state = replay(events)
    units = {e.unit: e.seconds for e in events if isinstance(e, ev.UnitFinished) and e.unit.startswith("needle/")}
    for figure in figures(state)["needle"]:
        if isinstance(figure, Table):
            print(draw(figure), end="\n\n")
    facts: dict[str, Any] = {
        "bench": "needle", "lengths": given.lengths, "depths": given.depths, "kinds": given.kinds, "cells": len(units),
        "methods": len(state.methods), "seconds": round(seconds, 1), "grid_seconds": round(sum(units.values()), 1),
        "slowest_cell_seconds": round(max(units.values()), 1), "goal_seconds": GOAL_SECONDS, "cores": len(os.sched_getaffinity(0)),
        "baseline_exact": _score(state, "baseline"),
    }  # fmt: skip
    print(json.dumps(facts))


def _command(given: argparse.Namespace, folder: str) -> list[str]:
    needle = f"needle:lengths={given.lengths},depths={given.depths},kinds={given.kinds},samples={given.samples}"
    return [
        sys.executable, "-m", "kvbench", "run", "--methods", given.methods, "--evals", needle, "--samples", "1",
        "--context", "512", "--continuation", "32", "--display", "plain", "--output-dir", folder,
    ]  # fmt: skip


def _score(state: Any, label: str) -> float:
    found = [data["exact"] for data in state.records["needle"][label].values()]
    return round(sum(found) / len(found), 4)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--lengths", default=LENGTHS)
    parser.add_argument("--depths", default="5")
    parser.add_argument("--kinds", default="single")
    parser.add_argument("--samples", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
