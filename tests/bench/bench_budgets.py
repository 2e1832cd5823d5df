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

from argparse import Namespace
from pathlib import Path
from typing import Any

from benching import Column, arguments, closing, option, picked, table

from kvbench.cli.question import spec_of
from kvbench.displays.ending import header
from kvbench.engine import start
from kvbench.metrics.row import Row
from kvbench.record import results
from kvbench.record.summary import rows
from kvbench.spec import BASELINE, MethodSpec
from kvbench.spec.budgets import parse_budgets

COLUMNS: dict[str, Column] = {
    "method": "{method}", "PPL": "{perplexity:.2f}", "ΔPPL %": "{ppl_delta_pct:+.2f}",
    "95 % interval": "[{delta_low:+.2f}, {delta_high:+.2f}]", "KL": "{kl:.4f}", "top-1 %": lambda row: f"{100 * row['top1']:.1f}",
    "asked": "{target_compression_factor:.2f}×", "stored": lambda row: f"{row['compression_factor']:.2f}×{_mark(row)}",
    "audit": "{audit}", "turned": "{settings}",
}  # fmt: skip
Result = dict[str, Any]


def main() -> None:
    given = arguments(
        __doc__, methods="all", budget="2x,4x,8x", samples=8, context=512, continuation=128, preset="smollm2",
        output_dir=start.DEFAULT_OUTPUT, result=option(None, "A run's folder or result file, in place of a new run.", type=Path),
    )  # fmt: skip
    parse_budgets(given.budget)
    result = results.load(given.result) if given.result else _run(given)
    state = results.to_state(result)
    details = {row["method"]: row for row in result["results"]}
    found = [_plain(row, details[row.label]) for row in rows(state) if row.status != "failed"]
    print("\n".join(header(state)))
    for budget in dict.fromkeys(row["budget"] for row in result["results"] if row.get("budget")):
        print(f"\n{budget}")
        table([row for row in found if budget == row["budget"] or row["method"] == BASELINE], COLUMNS)
        for row in result["results"]:
            if row.get("budget") == budget and row["status"] == "failed":
                print(f"{MethodSpec.parse(row['method']).label}: {row['error']}")
    closing("budgets", **_facts(result), rows=found)


def _run(given: Namespace) -> Result:
    asked = picked(given, "preset methods budget samples context continuation")
    return start.run(spec_of({**asked, "evals": "perplexity,memory:steps=1"}), output_dir=given.output_dir)


def _mark(row: Any) -> str:
    return " !" if row["budget_met"] is False else ""


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
        "audit": row.audit, "budget": detail.get("budget"), "settings": row.settings,
    }  # fmt: skip


if __name__ == "__main__":
    main()
