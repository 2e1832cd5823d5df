"""What rounding does to each row of a run, and what measuring it cost.

Rounding is measured in one batch of sixteen, by walking its first row once more in another shape. Its price is what those batches took
beyond the median of the others, as a share of all scoring: it is to stay below 15 % for eight samples or more. A run of one batch has
nothing to compare with, and its price is not given.

    python tests/bench/bench_rounding.py bench_results/<run>
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median

from tabulate import tabulate

from kvbench.engine.journal import RunFolder
from kvbench.record import events as ev
from kvbench.record.summary import rows

MOST = 0.15


def price(told: list[ev.Event]) -> float | None:
    """Share of the scoring's seconds that walking again took."""
    again = {e.unit for e in told if isinstance(e, ev.RecordMade) and e.evaluator == "perplexity" and e.data.get("rounding")}
    took = {e.unit: e.seconds for e in told if isinstance(e, ev.UnitFinished) and e.unit.startswith("perplexity/")}
    others = [seconds for unit, seconds in took.items() if unit not in again]
    if not again or not others:
        return None
    return sum(max(0.0, took[unit] - median(others)) for unit in again if unit in took) / sum(took.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    folder = RunFolder(parser.parse_args().run)
    cost, found = price(list(folder.read())), [row for row in rows(folder.state()) if row.rounding_pct is not None]
    shown = [[r.label, r.perplexity, r.delta_pct, r.rounding_pct, r.rounding_kl, "~" if r.within_rounding else ""] for r in found]
    print(tabulate(shown, ["method", "PPL", "ΔPPL %", "rounding PPL %", "rounding KL", ""], floatfmt=".4g"))
    print(f"price: {'not known' if cost is None else f'{cost:.1%} of scoring, at most {MOST:.0%}'}")
    print(json.dumps({"price": cost, "most": MOST, "rounding_pct": {r.label: r.rounding_pct for r in found}}))
    if cost is not None and cost > MOST:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
