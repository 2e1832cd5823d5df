"""What it costs to read a run: microseconds an event by kind and size, and the whole of a large journal.

Every display, resume and result folds the journal, so a record must cost the same when 40,000 samples are held as when 400
are. Journals are made up: perplexity's units, a record a method and sample as the scorer writes them (about 5.3 kB a unit of 4
methods), telemetry between units. Times are this process's CPU time. ``decode`` is from a line to an event, ``fold`` from an
event to the next state; reading a folder also checks every line.

    python tests/bench/bench_fold.py
    python tests/bench/bench_fold.py --sizes 100,1000 --methods 20 --samples 50
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tabulate import tabulate

from kvbench.engine.journal import EVENTS, SCHEMA, RunFolder
from kvbench.metrics.stats import histogram, histogram_to_json, kl_bin_index
from kvbench.record import events as ev
from kvbench.record.state import apply, replay
from kvbench.record.summary import rows
from kvbench.spec import EvaluatorSpec, MethodSpec, RunSpec

GOAL_MICROSECONDS, GOAL_SECONDS = 30.0, 3.0
TOKENS, BINS = 32, 15
LAST = 100
"""Units at the end of a journal whose events are timed one by one."""
T = TypeVar("T")


def main() -> None:
    given = _arguments()
    by_size = {size: _by_kind(size) for size in given.sizes}
    whole = _whole(given.methods, given.samples)
    kinds = list(by_size[given.sizes[0]])
    table = [[kind, *(f"{part:.1f}" for size in given.sizes for part in by_size[size][kind])] for kind in kinds]
    headings = ["median µs an event", *(f"{part}, {size:,} samples" for size in given.sizes for part in ("decode", "fold"))]
    print(tabulate(table, headings, stralign="right"), end="\n\n")
    print(tabulate([[name, value] for name, value in whole.items()], [f"{given.methods} methods × {given.samples} samples", ""]))
    most = {str(size): round(max(decode + fold for decode, fold in found.values()), 1) for size, found in by_size.items()}
    goals = {"goal_microseconds": GOAL_MICROSECONDS, "goal_seconds": GOAL_SECONDS}
    print(json.dumps({"bench": "fold", "dearest_event_microseconds": most, **whole, **goals}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=[400, 4_000, 40_000])
    parser.add_argument("--methods", type=int, default=200)
    parser.add_argument("--samples", type=int, default=400)
    return parser.parse_args()


def _labels(count: int) -> list[str]:
    return ["baseline", *(f"kivi:residual={i + 1}" for i in range(count - 1))]


def _started(methods: list[str], samples: int) -> ev.RunStarted:
    spec = RunSpec(methods=tuple(map(MethodSpec.parse, methods)), evaluators=(EvaluatorSpec("perplexity"),), samples=samples)
    units = [
        {"id": f"perplexity/{i}", "evaluator": "perplexity", "index": i, "methods": methods, "steps": len(methods) + 1}
        for i in range(samples)
    ]
    return ev.RunStarted(0.0, spec.to_plain(), units, methods, "0", SCHEMA)


def _unit(index: int, methods: list[str], records: list[dict[str, Any]]) -> Iterator[ev.Event]:
    unit, at = f"perplexity/{index}", float(index)
    yield ev.UnitStarted(at, unit)
    for i, label in enumerate(methods):
        yield ev.MethodStarted(at + (i + 1) / 1e3, unit, label)
    for i, label in enumerate(methods):
        yield ev.RecordMade(at + 0.5 + i / 1e3, unit, "perplexity", label, str(index), records[(index + i) % len(records)])
    yield ev.TelemetrySampled(at + 0.8, 1 << 30, None)
    yield ev.UnitFinished(at + 0.9, unit, 0.9)


def _records(count: int = 32) -> list[dict[str, Any]]:
    """As perplexity writes one."""
    dice = random.Random(0)
    return [_record(dice) for _ in range(count)]


def _record(dice: random.Random) -> dict[str, Any]:
    kls = [dice.expovariate(10.0) for _ in range(TOKENS)]
    bytes_of = {name: dice.uniform(1e6, 2e6) for name in ("stored_bytes", "allocated_bytes", "baseline_bytes")}
    ends = {name: dice.uniform(1e6, 2e6) for name in ("stored_bytes_end", "baseline_bytes_end")}
    return {
        "tokens": TOKENS, "nll": dice.uniform(700, 800), "kl": sum(kls), "kl_max": max(kls),
        "kl_hist": histogram_to_json(histogram(kl_bin_index(kls))), "agree": dice.randint(150, 250),
        "ece_count": [dice.randint(5, 30) for _ in range(BINS)], "ece_confidence": [dice.uniform(1, 20) for _ in range(BINS)],
        "ece_correct": [dice.randint(1, 20) for _ in range(BINS)], "tokens_read_compressed": TOKENS - 1, **bytes_of, **ends,
        "artefact_bytes": 0, "keys_held": 23_040.0, "keys_total": 46_080, "seconds": dice.uniform(0.5, 0.9),
    }  # fmt: skip


def _by_kind(samples: int) -> dict[str, tuple[float, float]]:
    """Kind of event → median µs of decoding and of folding one, over the last units of a run of 4 methods."""
    methods, records = _labels(4), _records()
    state = replay([_started(methods, samples)])
    for index in range(samples - LAST):
        for event in _unit(index, methods, records):
            state = apply(state, event)
    spent: dict[str, list[tuple[float, float]]] = {}
    for index in range(max(0, samples - LAST), samples):
        for event in _unit(index, methods, records):
            line = ev.encode(event)
            read, decoding = _timed(lambda line=line: ev.decode(line))
            state, folding = _timed(lambda read=read, state=state: apply(state, read))
            spent.setdefault(type(event).__name__, []).append((decoding * 1e6, folding * 1e6))
    return {kind: (statistics.median(d for d, _ in of), statistics.median(f for _, f in of)) for kind, of in spent.items()}


def _whole(methods: int, samples: int) -> dict[str, float]:
    """A whole journal in a run's folder: seconds of reading it, of folding it, and of summarising what it came to."""
    labels, records = _labels(methods), _records()
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(Path(name))
        with (folder.path / EVENTS).open("wb") as file:
            file.write(ev.encode(_started(labels, samples)))
            for index in range(samples):
                file.writelines(map(ev.encode, _unit(index, labels, records)))
        size = (folder.path / EVENTS).stat().st_size
        events, reading = _timed(folder.read)
    state, folding = _timed(lambda: replay(events))
    _, summarising = _timed(lambda: rows(state))
    return {
        "events": len(events), "journal_mib": round(size / 2**20, 1), "read_and_check_s": round(reading, 2), "fold_s": round(folding, 2),
        "read_and_fold_s": round(reading + folding, 2), "summarise_s": round(summarising, 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
    }  # fmt: skip


def _timed(action: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    found = action()
    return found, time.process_time() - started


if __name__ == "__main__":
    main()
