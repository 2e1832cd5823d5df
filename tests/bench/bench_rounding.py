"""What rounding does to each row of a run, and what measuring it cost.

Rounding is measured in one batch of sixteen, by walking its first row once more in another shape. Its price is what those batches took
beyond the median of the others, as a share of all scoring: it is to stay below 15 % for eight samples or more. A run of one batch has
nothing to compare with, and its price is not given.

    python tests/bench/bench_rounding.py bench_results/<run>
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from benching import Column, arguments, closing, table

from kvbench.engine.journal import RunFolder
from kvbench.record import events as ev
from kvbench.record.summary import rows

MOST = 0.15
COLUMNS: dict[str, Column] = {
    "method": "{label}", "PPL": "{perplexity:.4g}", "ΔPPL %": "{delta_pct:.4g}", "rounding PPL %": "{rounding_pct:.4g}",
    "rounding KL": "{rounding_kl:.4g}", "": lambda row: "~" * row["within_rounding"],
}  # fmt: skip


def main() -> None:
    folder = RunFolder(arguments(__doc__, run={"nargs": None, "type": Path}).run)
    cost, found = price(list(folder.read())), [row for row in rows(folder.state()) if row.rounding_pct is not None]
    table(map(vars, found), COLUMNS)
    print(f"price: {'not known' if cost is None else f'{cost:.1%} of scoring, at most {MOST:.0%}'}")
    closing("rounding", price=cost, most=MOST, rounding_pct={row.label: row.rounding_pct for row in found})
    if cost is not None and cost > MOST:
        raise SystemExit(1)


def price(told: list[ev.Event]) -> float | None:
    """Share of the scoring's seconds that walking again took."""
    again = {e.unit for e in told if isinstance(e, ev.RecordMade) and e.evaluator == "perplexity" and e.data.get("rounding")}
    took = {e.unit: e.seconds for e in told if isinstance(e, ev.UnitFinished) and e.unit.startswith("perplexity/")}
    others = [seconds for unit, seconds in took.items() if unit not in again]
    if not again or not others:
        return None
    return sum(max(0.0, took[unit] - median(others)) for unit in again if unit in took) / sum(took.values())


if __name__ == "__main__":
    main()
