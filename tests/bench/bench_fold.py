"""What it costs to read a run: microseconds an event by kind and size, and the whole of a large journal.

Every display, resume and result folds the journal, so a record must cost the same when 40,000 samples are held as when 400
are. Journals are made up: perplexity's units, a record a method and sample as the scorer writes them (about 5.3 kB a unit of 4
methods), telemetry between units. Times are this process's CPU time. ``decode`` is from a line to an event, ``fold`` from an
event to the next state; reading a folder also checks every line.

    python tests/bench/bench_fold.py
    python tests/bench/bench_fold.py --sizes 100,1000 --methods 20 --samples 50
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benching import arguments, closing, highest_resident, listing, table, timed

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
clocked = partial(timed, clock=time.process_time)


def main() -> None:
    sizes = {"default": [400, 4_000, 40_000], "type": lambda text: [int(size) for size in text.split(",")]}
    given = arguments(__doc__, sizes=sizes, methods=200, samples=400)
    by_size = {size: _by_kind(size) for size in given.sizes}
    whole = _whole(given.methods, given.samples)
    columns = {f"{part}, {size:,} samples": f"{{{part} {size}:.1f}}" for size in given.sizes for part in ("decode", "fold")}
    kinds = [
        {"kind": kind, **{f"{part} {size}": spent for size, of in by_size.items() for part, spent in of[kind].items()}}
        for kind in by_size[given.sizes[0]]
    ]
    table(kinds, {"median µs an event": "{kind}", **columns})
    print()
    listing(f"{given.methods} methods × {given.samples} samples", whole)
    most = {str(size): round(max(sum(parts.values()) for parts in of.values()), 1) for size, of in by_size.items()}
    closing("fold", dearest_event_microseconds=most, **whole, goal_microseconds=GOAL_MICROSECONDS, goal_seconds=GOAL_SECONDS)


def _labels(count: int) -> list[str]:
    return ["baseline", *(f"kivi:residual={i + 1}" for i in range(count - 1))]


def _started(methods: list[str], samples: int) -> ev.RunStarted:
    spec = RunSpec(methods=tuple(map(MethodSpec.parse, methods)), evaluators=(EvaluatorSpec("perplexity"),), samples=samples)
    common = {"evaluator": "perplexity", "methods": methods, "steps": len(methods) + 1}
    return ev.RunStarted(
        0.0, spec.to_plain(), [{"id": f"perplexity/{i}", "index": i, **common} for i in range(samples)], methods, "0", SCHEMA
    )


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


def _by_kind(samples: int) -> dict[str, dict[str, float]]:
    """Kind of event → median µs of decoding and of folding one, over the last units of a run of 4 methods."""
    methods, records = _labels(4), _records()
    state = replay([_started(methods, samples)])
    spent: dict[str, list[tuple[float, float]]] = {}
    for index in range(samples):
        for event in _unit(index, methods, records):
            if index < samples - LAST:
                state = apply(state, event)
                continue
            read, decoding = clocked(partial(ev.decode, ev.encode(event)))
            state, folding = clocked(partial(apply, state, read))
            spent.setdefault(type(event).__name__, []).append((decoding * 1e6, folding * 1e6))
    return {kind: {"decode": median(d for d, _ in of), "fold": median(f for _, f in of)} for kind, of in spent.items()}


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
        events, reading = clocked(folder.read)
    state, folding = clocked(lambda: replay(events))
    _, summarising = clocked(lambda: rows(state))
    return {
        "events": len(events), "journal_mib": round(size / 2**20, 1), "read_and_check_s": round(reading, 2), "fold_s": round(folding, 2),
        "read_and_fold_s": round(reading + folding, 2), "summarise_s": round(summarising, 2),
        "peak_mib": round(highest_resident() / 2**20),
    }  # fmt: skip


if __name__ == "__main__":
    main()
