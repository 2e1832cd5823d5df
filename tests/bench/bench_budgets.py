"""Every method at equal bytes: what each costs in quality when it may store a half, a quarter and an eighth of the cache.

Tables of KV-cache compression usually set methods side by side at whatever each one calls its ratio; bytes for scales, kept
positions, residual windows and guarded tokens are then free for those that have them. Here every method's dial is turned
until what it stores after the context, weighed in its own tensors, is the budget to within two percent; a method that cannot
be turned that far is listed with how near it comes. All rows of a budget are scored on the same tokens from the same
prefill, so that the change against the baseline has a paired interval.

    python tests/bench/bench_budgets.py                                    # all methods, 2x, 4x and 8x, embedded model
    python tests/bench/bench_budgets.py --methods snapkv,int4,kivi --samples 2 --context 256 --continuation 64
    python tests/bench/bench_budgets.py --result bench_results/RUN         # the tables of a run that there is
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kvbench.cli.question import spec_of
from kvbench.displays.table import header
from kvbench.engine import start
from kvbench.evaluators.base import BASELINE
from kvbench.metrics.row import Row
from kvbench.record import results
from kvbench.record.summary import rows
from kvbench.spec import MethodSpec
from kvbench.spec.budgets import parse_budgets

NONE = "–"
Result = dict[str, Any]


def main() -> None:
    given = _arguments()
    result = results.load(given.result) if given.result else _run(given)
    state = results.to_state(result)
    table = [row for row in rows(state) if row.status != "failed"]
    details = {row["method"]: row for row in result["results"]}
    print("\n".join(header(state)))
    for budget in dict.fromkeys(row["budget"] for row in result["results"] if row.get("budget")):
        print(
            f"\n{budget}\n{_table([row for row in table if row.label == BASELINE or details[row.label].get('budget') == budget], details)}"
        )
        for row in result["results"]:
            if row.get("budget") == budget and row["status"] == "failed":
                print(f"{MethodSpec.parse(row['method']).label}: {row['error']}")
    print(json.dumps({"bench": "budgets", **_facts(result), "rows": [_plain(row, details[row.label]) for row in table]}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="all")
    parser.add_argument("--budget", default="2x,4x,8x")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--continuation", type=int, default=128)
    parser.add_argument("--preset", default="smollm2")
    parser.add_argument("--output-dir", type=Path, default=start.DEFAULT_OUTPUT)
    parser.add_argument("--result", type=Path, help="A run's folder or result file, in place of a new run.")
    given = parser.parse_args()
    parse_budgets(given.budget)
    return given


def _run(given: argparse.Namespace) -> Result:
    sizes = {name: getattr(given, name) for name in ("preset", "methods", "budget", "samples", "context", "continuation")}
    return start.run(spec_of({**sizes, "evals": "perplexity,memory:steps=1"}), output_dir=given.output_dir)


def _table(found: Sequence[Row], details: dict[str, Result]) -> str:
    heads = ["method", "PPL", "ΔPPL %", "95 % interval", "KL", "top-1 %", "asked", "stored", "audit", "turned"]
    body = [_cells(row, details[row.label]) for row in found]
    align = ("left", *["right"] * 7, "left", "left")
    return tabulate(body, headers=heads, tablefmt="simple", colalign=align, disable_numparse=True)


def _cells(row: Row, detail: Result) -> list[str]:
    interval = NONE if row.delta_low is None or row.delta_high is None else f"[{row.delta_low:+.2f}, {row.delta_high:+.2f}]"
    asked, met = detail.get("target_compression_factor"), detail.get("budget_met", True)
    return [
        row.label, _number(row.perplexity, ".2f"), _number(row.delta_pct, "+.2f"), interval, _number(row.kl, ".4f"),
        _number(None if row.top1 is None else 100 * row.top1, ".1f"), _number(asked, ".2f", "×"),
        _number(row.factor, ".2f", "×") + ("" if met else " !"), row.audit or NONE, row.settings,
    ]  # fmt: skip


def _number(value: float | None, form: str, unit: str = "") -> str:
    return NONE if value is None else f"{value:{form}}{unit}"


def _facts(result: Result) -> Result:
    spec, model = result["spec"], result["model"]
    return {
        "model": model.get("id"), "cache_dtype": model.get("cache_dtype"), "corpus": spec["corpus"]["name"],
        "samples": spec["samples"], "context": spec["context"], "continuation": spec["continuation"], "seconds": result["seconds"],
        "failed": {row["method"]: row["error"] for row in result["results"] if row["status"] == "failed"},
    }  # fmt: skip


def _plain(row: Row, detail: Result) -> Result:
    solved, asked = detail.get("budget_solved") or {}, detail.get("target_compression_factor")
    return {
        "method": row.label, "perplexity": row.perplexity, "ppl_delta_pct": row.delta_pct, "delta_low": row.delta_low,
        "delta_high": row.delta_high, "kl": row.kl, "top1": row.top1, "target_compression_factor": asked,
        "compression_factor": row.factor, "budget_met": detail.get("budget_met"), "parameters": solved.get("parameters"),
        "audit": row.audit,
    }  # fmt: skip


if __name__ == "__main__":
    main()
