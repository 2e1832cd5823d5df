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

from argparse import Namespace
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from benching import arguments, closing, in_turn, methods, option, picked, refuse, table, talk, timed
from opening import opened
from torch import Tensor
from transformers import DynamicCache

from kvbench.caches.cache import use_kvbench_attention
from kvbench.instruments.protocol import Prompt
from kvbench.instruments.scoring import score
from kvbench.instruments.session import Session
from kvbench.spec import BASELINE, ModelSpec

GOAL, GOAL_STEPWISE = 1.5, 12.0
"""Ours over the floor, at most, for the median method; token by token over ours, at least."""
PREFILL, SCORING = "prefill", "scoring"
FIELDS = ("ours_s", "floor_s", "over_floor", "stepwise_s", "times_faster")
Times = dict[str, list[float]]


def main() -> None:
    given = arguments(
        __doc__, model="embedded:smollm2", methods=methods("all"), context=512, continuation=512, repeats=5,
        cache_dtype={"default": "float32", "choices": ["float32", "bfloat16", "float16"]},
        stepwise=option(False, "Time the token-by-token path too."),
        stepwise_tokens=option(0, "Tokens to time of it, scaled up linearly.  [default: all]"),
    )  # fmt: skip
    if given.continuation < 2 or not 0 <= given.stepwise_tokens < given.continuation:
        refuse("--continuation must be at least 2 and --stepwise-tokens less than it")
    walked = given.stepwise_tokens or given.continuation - 1
    model = ModelSpec(given.model, dtype="float32", cache_dtype=given.cache_dtype, device="cpu")
    session = opened(model, given.methods, evaluator="perplexity", context=given.context, continuation=given.continuation, samples=1)
    tokens = session.batch(0)
    bench = Bench(session, tokens[:, : given.context], tokens[:, given.context :])
    for number in range(given.repeats + 1):
        bench.round(ours_first=bool(number % 2), keep=number > 0)
        talk(f"round {number} of {given.repeats}" + ("" if number else " (warm-up, not counted)"))
    if given.stepwise:
        bench.stepwise(walked)
    _report(bench, given, walked)


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
        ours, plain = _Ours(self), DynamicCache(config=self.session.loaded.config)
        floor = partial(self._floor, cache=plain)
        times: dict[str, tuple[float, float]] = {
            part: in_turn(partial(ours.take, part), partial(floor, part), other_first=not ours_first) for part in (PREFILL, *self.labels)
        }
        times[SCORING] = ours.score(), 0.0
        for part, (spent, least) in times.items() if keep else ():
            self.ours[part].append(spent)
            self.floor[part].append(least)

    @torch.inference_mode()
    def _floor(self, part: str, cache: Any) -> float:
        """Seconds of the model's own prefill into its own ``cache``, or of a forward of S tokens after it, which is then taken back."""
        model = self.session.loaded.model
        model.set_attn_implementation("sdpa")
        if part == PREFILL:
            return timed(lambda: model(self.context, past_key_values=cache, logits_to_keep=1).logits)[1]
        _, seconds = timed(lambda: model(self.targets, past_key_values=cache).logits)
        cache.crop(-self.targets.shape[1])  # negative: so many tokens less
        return seconds

    def stepwise(self, count: int) -> None:
        """Seconds of each method token by token, from ``count`` tokens of it scaled to all that are walked."""
        runner, walked = self.session.runner, self.targets.shape[1] - 1
        use_kvbench_attention(self.session.loaded.model)
        prompt = runner.prefill(self.context, self.session.needs(self.labels))
        runner.stepwise(self.targets[:, :2], runner.compress(self.session.methods[BASELINE], prompt))  # warm
        for label, method in self.session.methods.items():
            cache, compress = timed(partial(runner.compress, method, prompt))
            _, walk = timed(partial(runner.stepwise, self.targets[:, :count], cache))
            self.by_token[label] = compress + walk * walked / count
            talk(f"{label}: {1e3 * walk / count:.1f} ms a token")


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
            self._prompt, seconds = timed(lambda: self._runner.prefill(self._bench.context, needs))
        else:
            self._hidden[part], seconds = timed(lambda: self._continue(part))
        return seconds

    def _continue(self, label: str) -> Tensor:
        if self._prompt is None:
            raise RuntimeError("the prefill comes first")
        cache = self._runner.compress(self._session.methods[label], self._prompt)
        return self._runner.continuation(self._prompt, cache, self._bench.targets)

    def score(self) -> float:
        return timed(lambda: score(self._runner, self._hidden, self._bench.targets, BASELINE))[1]


def _report(bench: Bench, given: Namespace, walked: int) -> None:
    rows, scoring = _rows(bench), median(bench.ours[SCORING])
    whole, middle = rows[-1], median(row["over_floor"] for row in rows[1:-1])
    worst = max(rows[1:-1], key=lambda row: row["over_floor"])
    rounds = [sum(t[i] for t in bench.ours.values()) / sum(t[i] for t in bench.floor.values()) for i in range(given.repeats)]
    table(rows, {"part": "{part}", **{name: f"{{{name}:.3f}}" for name in FIELDS}})
    print(f"\ntotal over floor {whole['over_floor']:.3f} (rounds {min(rounds):.3f} to {max(rounds):.3f})")
    print(f"median method {middle:.3f}, goal ≤ {GOAL}")
    print(f"worst method {worst['part']}, {worst['over_floor']:.3f}; scoring {scoring:.3f} s, shared equally by the methods")
    times_faster = whole["times_faster"]
    if times_faster:
        of = f"{walked} of {given.continuation - 1} tokens a method were timed, and stepwise_s scaled linearly"
        scaled = f" (scaled: {of})" if walked < given.continuation - 1 else ""
        print(f"token by token {times_faster:.1f} times slower, goal ≥ {GOAL_STEPWISE:g}{scaled}")
    closing(
        "exact_scoring", **picked(given, "context continuation repeats cache_dtype"), threads=torch.get_num_threads(),
        over_floor=whole["over_floor"], rounds=rounds, median_over_floor=middle, goal=GOAL, met=middle <= GOAL, worst=worst["part"],
        worst_over_floor=worst["over_floor"], scoring_s=scoring, times_faster_than_stepwise=times_faster, stepwise_goal=GOAL_STEPWISE,
        stepwise_met=times_faster and times_faster >= GOAL_STEPWISE, stepwise_tokens=walked, rows=rows,
    )  # fmt: skip


def _rows(bench: Bench) -> list[dict[str, Any]]:
    """The prefill, every method with its share of the scoring, and the total; seconds are medians."""
    share = median(bench.ours[SCORING]) / len(bench.labels)
    own = {PREFILL: 0.0, **dict.fromkeys(bench.labels, share)}
    ours = {part: median(bench.ours[part]) + more for part, more in own.items()}
    floor = {part: median(bench.floor[part]) for part in own}
    steps = {PREFILL: ours[PREFILL], **{label: spent + share for label, spent in bench.by_token.items()}} if bench.by_token else {}
    rows = [_row(part, ours[part], floor[part], steps.get(part)) for part in own]
    return [*rows, _row("total", sum(ours.values()), sum(floor.values()), sum(steps.values()) if steps else None)]


def _row(part: str, ours: float, floor: float, stepwise: float | None) -> dict[str, Any]:
    ratio = None if stepwise is None else stepwise / ours
    return dict(zip(("part", *FIELDS), (part, ours, floor, ours / floor, stepwise, ratio), strict=True))


if __name__ == "__main__":
    main()
