"""What a needle grid of all methods costs: 5 lengths × 5 depths for 12 methods on the embedded model, as one run does it.

A needle test is usually run method by method, cell by cell, a prefill for each. Here one prefill of a cell serves all methods,
and their answers are decoded together, a forward a token, so that a grid is little more than the baseline's alone. The time
is of the whole command, loading, audit and result file included; ``--evals`` parameters are those of ``needle``.

    python tests/bench/bench_needle.py
    python tests/bench/bench_needle.py --lengths 256+512 --depths 3 --methods snapkv,int4
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benching import arguments, closing, command, picked, timed

from kvbench.engine.journal import RunFolder
from kvbench.figures import Table
from kvbench.figures.terminal import draw_table
from kvbench.record import events as ev
from kvbench.record.state import RunState, replay
from kvbench.record.summary import figures

METHODS = "streaming_llm,knorm,keydiff,tova,h2o,snapkv,pyramidkv,adakv,int8,int4,kivi"
"""With the baseline, 12; random eviction, the control that every run has, goes beside them."""
LENGTHS, GOAL_SECONDS = "256+512+1024+1536+2048", 600


def main() -> None:
    given = arguments(__doc__, methods=METHODS, lengths=LENGTHS, depths="5", kinds="single", samples=1)
    parts = picked(given, "lengths depths kinds samples")
    needle = "needle:" + ",".join(f"{name}={value}" for name, value in parts.items())
    sizes = {"samples": 1, "context": 512, "continuation": 32}
    with tempfile.TemporaryDirectory() as folder:
        asked = command("run", methods=given.methods, evals=needle, **sizes, display="plain", output_dir=folder)
        _, seconds = timed(lambda: subprocess.run(asked, check=True, stdout=sys.stderr))
        events = RunFolder(next(Path(folder).iterdir())).read()
    state = replay(events)
    units = [e.seconds for e in events if isinstance(e, ev.UnitFinished) and e.unit.startswith("needle/")]
    for figure in figures(state)["needle"]:
        if isinstance(figure, Table):
            print(draw_table(figure), end="\n\n")
    closing(
        "needle", **picked(given, "lengths depths kinds"), cells=len(units), methods=len(state.methods), seconds=round(seconds, 1),
        grid_seconds=round(sum(units), 1), slowest_cell_seconds=round(max(units), 1), goal_seconds=GOAL_SECONDS,
        cores=len(os.sched_getaffinity(0)), baseline_exact=_score(state, "baseline"),
    )  # fmt: skip


def _score(state: RunState, label: str) -> float:
    found = [float(data["exact"]) for data in state.records["needle"][label].values()]
    return round(sum(found) / len(found), 4)


if __name__ == "__main__":
    main()
