"""What exact scoring of all methods costs, over the least that any scoring must do.

Evaluating a cache policy exactly is thought to need one forward a token, which is why quality figures of KV compression are
often measured on something cheaper. kvbench walks the continuation through each layer's cache by blocks and gets the same
numbers from one forward; this script shows what is left of the price. The floor is the model itself, untouched: one prefill,
and for each method one forward of S tokens with their logits on ``DynamicCache`` and sdpa; it stores nothing compressed and
scores nothing. Ours is one shared prefill with all that the methods observe, then compress, block-parallel continuation and
slab-wise scoring of every method. ``--stepwise`` adds our own token-by-token path, which shares prefill and scoring with the
block form, so that only the walk differs.

Ours and the floor take turns, method by method, so that a machine that slows down slows both; figures are medians over
repeats. A method's time includes an equal share of the scoring. Calibration, done once a model, is not counted.

    python tests/bench/bench_exact_scoring.py [--stepwise [--stepwise-tokens 64]]
    python tests/bench/bench_exact_scoring.py --context 64 --continuation 32 --repeats 1 --methods knorm,int8
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from tabulate import tabulate
from torch import Tensor
from transformers import DynamicCache

from kvbench.caches.cache import use_kvbench_attention
from kvbench.engine.plan import complete, resolve_methods
from kvbench.evaluators.base import BASELINE
from kvbench.instruments.protocol import Prompt
from kvbench.instruments.scoring import score
from kvbench.instruments.session import Session
from kvbench.methods.base import expand
from kvbench.models.weights import silent
from kvbench.spec import EvaluatorSpec, ModelSpec, RunSpec

GOAL, GOAL_STEPWISE = 1.5, 12.0
"""Ours over the floor, at most, for the median method; token by token over ours, at least."""
PREFILL, SCORING = "prefill", "scoring"
T = TypeVar("T")
Times = dict[str, list[float]]


def main() -> None:
    given = _arguments()
    bench = _open(given)
    for number in range(given.repeats + 1):
        bench.round(ours_first=bool(number % 2), keep=number > 0)
        print(f"round {number} of {given.repeats}" + ("" if number else " (warm-up, not counted)"), file=sys.stderr)
    if given.stepwise:
        bench.stepwise(given.stepwise_tokens or given.continuation - 1)
    _report(bench, given)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2")
    parser.add_argument("--methods", default="all", help="The controls, baseline and random, are always among them.")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--continuation", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache-dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--stepwise", action="store_true", help="Time the token-by-token path too.")
    parser.add_argument("--stepwise-tokens", type=int, default=0, help="Tokens to time of it, scaled up linearly.  [default: all]")
    given = parser.parse_args()
    if given.continuation < 2 or not 0 <= given.stepwise_tokens < given.continuation:
        parser.error("--continuation must be at least 2 and --stepwise-tokens less than it")
    return given


def _open(given: argparse.Namespace) -> Bench:
    model = ModelSpec(given.model, dtype="float32", cache_dtype=given.cache_dtype, device="cpu")
    methods = expand([given.methods])
    sizes = {"context": given.context, "continuation": given.continuation, "samples": 1}
    spec = complete(RunSpec(model=model, methods=methods, evaluators=(EvaluatorSpec("perplexity"),), **sizes))
    session = Session.open(spec, resolve_methods(spec), silent)
    tokens = session.batch(0)
    return Bench(session, tokens[:, : given.context], tokens[:, given.context :])


def _timed(action: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


@dataclass
class Bench:
    """One window ``[1, C]`` and ``[1, S]`` through both ways of scoring; times by part, seconds."""

    session: Session
    context: Tensor
    targets: Tensor
    ours: Times = field(default_factory=lambda: defaultdict(list))
    floor: Times = field(default_factory=lambda: defaultdict(list))
    by_token: dict[str, float] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        return list(self.session.methods)

    def round(self, *, ours_first: bool, keep: bool) -> None:
        """Every part once: a plain forward beside each of ours."""
        ours, floor, plain = _Ours(self), _Floor(self), DynamicCache(config=self.session.loaded.config)
        times: dict[str, tuple[float, float]] = {}
        for part in (PREFILL, *self.labels):
            if ours_first:
                spent = ours.take(part)
                times[part] = spent, floor.take(part, plain)
            else:
                least = floor.take(part, plain)
                times[part] = ours.take(part), least
        times[SCORING] = ours.score(), 0.0
        for part, (spent, least) in times.items() if keep else ():
            self.ours[part].append(spent)
            self.floor[part].append(least)

    def stepwise(self, count: int) -> None:
        """Seconds of each method token by token, from ``count`` tokens of it scaled to all that are walked."""
        session, walked = self.session, self.targets.shape[1] - 1
        use_kvbench_attention(session.loaded.model)
        prompt = session.runner.prefill(self.context, session.needs(self.labels))
        session.runner.stepwise(self.targets[:, :2], session.runner.compress(session.methods[BASELINE], prompt))  # warm
        for label in self.labels:
            compress, cache = _timed(lambda label=label: session.runner.compress(session.methods[label], prompt))  # type: ignore[misc]
            walk, _ = _timed(lambda cache=cache: session.runner.stepwise(self.targets[:, :count], cache))  # type: ignore[misc]
            self.by_token[label] = compress + walk * walked / count
            print(f"{label}: {1e3 * walk / count:.1f} ms a token", file=sys.stderr)


class _Floor:
    """The model's own forwards on its own cache."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._model = bench, bench.session.loaded.model

    @torch.inference_mode()
    def take(self, part: str, cache: Any) -> float:
        """Seconds of a prefill into ``cache``, or of a forward of S tokens after it, which is then taken back."""
        self._model.set_attn_implementation("sdpa")
        if part == PREFILL:
            return _timed(lambda: self._model(self._bench.context, past_key_values=cache, logits_to_keep=1).logits)[0]
        seconds, _ = _timed(lambda: self._model(self._bench.targets, past_key_values=cache).logits)
        cache.crop(-self._bench.targets.shape[1])  # negative: so many tokens less
        return seconds


class _Ours:
    """What the perplexity evaluator does with one window, in the same order."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._session, self._runner = bench, bench.session, bench.session.runner
        self._hidden: dict[str, Tensor] = {}
        self._prompt: Prompt | None = None

    def take(self, part: str) -> float:
        """Seconds of the shared prefill, or of one method's compress and continuation."""
        use_kvbench_attention(self._session.loaded.model)
        if part == PREFILL:
            needs = self._session.needs(self._bench.labels)
            seconds, self._prompt = _timed(lambda: self._runner.prefill(self._bench.context, needs))
        else:
            seconds, self._hidden[part] = _timed(lambda: self._continue(part))
        return seconds

    def _continue(self, label: str) -> Tensor:
        if self._prompt is None:
            raise RuntimeError("the prefill comes first")
        cache = self._runner.compress(self._session.methods[label], self._prompt)
        return self._runner.continuation(self._prompt, cache, self._bench.targets)

    def score(self) -> float:
        return _timed(lambda: score(self._runner, self._hidden, self._bench.targets, BASELINE))[0]


def _report(bench: Bench, given: argparse.Namespace) -> None:
    ours = {part: statistics.median(times) for part, times in bench.ours.items()}
    floor = {part: statistics.median(times) for part, times in bench.floor.items()}
    share = ours[SCORING] / len(bench.labels)
    rows = [_row(PREFILL, ours[PREFILL], floor[PREFILL], ours[PREFILL] if bench.by_token else None)]
    for label in bench.labels:
        stepwise = bench.by_token[label] + share if bench.by_token else None
        rows.append(_row(label, ours[label] + share, floor[label], stepwise))
    whole = _row("total", sum(row["ours_s"] for row in rows), sum(row["floor_s"] for row in rows), _stepwise_total(rows))
    worst = max(rows[1:], key=lambda row: row["over_floor"])
    middle = statistics.median(row["over_floor"] for row in rows[1:])
    print(tabulate([*rows, whole], headers="keys", floatfmt=".3f", missingval=""))
    rounds = [sum(t[i] for t in bench.ours.values()) / sum(t[i] for t in bench.floor.values()) for i in range(given.repeats)]
    print(f"\ntotal over floor {whole['over_floor']:.3f} (rounds {min(rounds):.3f} to {max(rounds):.3f})")
    print(f"median method {middle:.3f}, goal ≤ {GOAL}")
    print(f"worst method {worst['part']}, {worst['over_floor']:.3f}; scoring {ours[SCORING]:.3f} s, shared equally by the methods")
    if bench.by_token:
        print(f"token by token {whole['times_faster']:.1f} times slower, goal ≥ {GOAL_STEPWISE:g}{_scaled(given)}")
    facts = {
        "bench": "exact_scoring", "context": given.context, "continuation": given.continuation, "repeats": given.repeats,
        "cache_dtype": given.cache_dtype, "threads": torch.get_num_threads(), "over_floor": whole["over_floor"],
        "rounds": rounds, "median_over_floor": middle, "goal": GOAL, "met": middle <= GOAL, "worst": worst["part"],
        "worst_over_floor": worst["over_floor"], "scoring_s": ours[SCORING], "times_faster_than_stepwise": whole["times_faster"],
        "stepwise_goal": GOAL_STEPWISE, "stepwise_met": whole["times_faster"] and whole["times_faster"] >= GOAL_STEPWISE,
        "stepwise_tokens": given.stepwise_tokens or given.continuation - 1, "rows": [*rows, whole],
    }  # fmt: skip
    print(json.dumps(facts))


def _row(part: str, ours: float, floor: float, stepwise: float | None) -> dict[str, Any]:
    ratio = None if stepwise is None else stepwise / ours
    return {"part": part, "ours_s": ours, "floor_s": floor, "over_floor": ours / floor, "stepwise_s": stepwise, "times_faster": ratio}


def _stepwise_total(rows: list[dict[str, Any]]) -> float | None:
    return None if rows[0]["stepwise_s"] is None else sum(row["stepwise_s"] for row in rows)


def _scaled(given: argparse.Namespace) -> str:
    if not given.stepwise_tokens or given.stepwise_tokens == given.continuation - 1:
        return ""
    return f" (scaled: {given.stepwise_tokens} of {given.continuation - 1} tokens a method were timed, and stepwise_s scaled linearly)"


if __name__ == "__main__":
    main()
