"""Decode steps against the byte roofline: the bf16 baseline by batch and context, and what every method's bytes buy.

Qwen2.5-7B's shape with random weights, caches drawn at random (their content changes no time), one run: every limit is
from the copy bandwidth measured in it, every ratio over its own baseline. Needs a GPU of 141 GB for the largest point.

    python tests/bench/bench_decode.py [--points 1x2048,1x32768,8x32768,32x8192,32x32768] [--methods ...] [--repeats 5]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

from kvbench.fused.choice import _CHOICES
from kvbench.instruments.decode import SETTLING_STEPS, decoder_for
from kvbench.instruments.roofline import Roofline, measured_once
from kvbench.instruments.session import Session
from kvbench.instruments.stopwatch import Stopwatch
from kvbench.instruments.timing import timed
from kvbench.methods.base import expand, resolve
from kvbench.metrics.points import Point
from kvbench.spec import EvaluatorSpec, ModelSpec, RunSpec
from kvbench.spec.presets import read_preset

POINTS = "1x2048,1x32768,8x32768,32x8192,32x32768"
METHODS = (
    "baseline,int8,int4:group=64,int4,int4:k_bits=2+v_bits=2+group=64,v_lowrank:rank=64+basis=random,snapkv,adakv,"
    "snapkv++int4:group=64,adakv++int4:group=64,kivi:bits=4,kivi:bits=2,hybrid_8x"
)
"""Parameters are joined by + here and a store by ++, since , separates methods."""
AT_ALL_POINTS = ("baseline", "v_lowrank")


def methods_of(text: str) -> list[str]:
    return [one.replace("++", "\0").replace("+", ",").replace("\0", "+") for one in text.split(",")]


def opened(labels: list[str], preset: str) -> Session:
    """The preset's model with random weights, and the methods."""
    config = read_preset(preset)["model"]
    spec = RunSpec(
        methods=tuple(spec for spec in expand(labels) if spec.label != "random" or "random" in labels),
        evaluators=(EvaluatorSpec("speed"),), context=64, samples=1,
        model=ModelSpec(config["id"], config["dtype"], random_weights=True, config=config["config"]),
    )  # fmt: skip
    return Session.open(spec, {m.label: resolve(m, spec) for m in spec.methods}, lambda *_: None)


def profiled(decoder: Any, steps: int = 4) -> list[tuple[float, float, str]]:
    """Where a step's time goes: microseconds a step, launches a step and the kernel's name, the longest first.

    Kernels that start while the one before them ends overlap, so their times add up to more than a step's; ``KVBENCH_PDL=0``
    starts each when the one before has ended.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        decoder.steps(steps)
        torch.cuda.synchronize()
    kernels = [(e.self_device_time_total / steps, e.count / steps, e.key[:80]) for e in seen.key_averages() if e.self_device_time_total]
    return sorted(kernels, reverse=True)


def measured(
    session: Session, label: str, point: Point, steps: int, repeats: int, path: Any, *, with_profile: bool = False
) -> dict[str, Any]:
    """One method at one point: seconds a step of every repeat, and what it took to get there."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    started = time.perf_counter()
    watch = Stopwatch(session, point, path, steps)
    filled = watch.drawn(label)
    torch.cuda.synchronize()
    filled_s = time.perf_counter() - started
    stored = filled.cache.ledger().stored
    reserve = max(SETTLING_STEPS.values()) + steps * repeats + 4
    decoder = decoder_for(session, label, filled.cache, path=path, reserve=reserve, again=filled.again)
    try:
        decoder.start(filled.first)
        decoder.steps(SETTLING_STEPS[decoder.read_path])
        held = torch.cuda.memory_allocated() - before
        times = [timed(session.loaded.device, partial(decoder.steps, steps))[1] / steps for _ in range(repeats)]
        if with_profile:
            print(tabulate(profiled(decoder)[:14], ["µs a step", "launches", "kernel"], floatfmt=("9.1f", ".0f", "")), flush=True)
        weights = decoder.weight_bytes() or 0
        read = decoder.read_bytes() or stored
        limit = Roofline(weights, read, measured_once(session)).limit(point.batch)
        return {
            "method": label, "point": f"{point.batch}x{point.context}", "path": decoder.read_path, "reason": decoder.reason,
            "step_s": times, "limit": limit, "weights": weights, "read": read, "stored": stored, "held": held,
            "fill_s": filled_s, "prepare_s": decoder.prepare_s, "capture_s": decoder.capture_s, "flush_s": decoder.flush_s,
        }  # fmt: skip
    finally:
        decoder.close()


def row(found: dict[str, Any], baseline: float | None) -> list[Any]:
    if "error" in found:
        return [found["point"], found["method"], found["error"][:60]]
    batch = int(found["point"].split("x")[0])
    step = statistics.median(found["step_s"])
    rate, spread = batch / step, (max(found["step_s"]) - min(found["step_s"])) / step
    return [
        found["point"], found["method"], found["path"], step * 1e3, spread, rate, found["limit"], rate / found["limit"],
        None if baseline is None else rate / baseline, found["stored"] / 2**30, found["held"] / 2**30,
        found["prepare_s"], found["capture_s"], None if found["flush_s"] is None else found["flush_s"] * 1e6,
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", default=POINTS)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--preset", default="qwen7b")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--path", default="auto")
    parser.add_argument("--profile", action="store_true", help="also print each row's kernels by time, and which products were chosen")
    parser.add_argument("--everything", action="store_true", help="every method at every point, not only at the last")
    asked = parser.parse_args()
    labels = methods_of(asked.methods)
    session = opened(labels, asked.preset)
    points = [Point(*map(int, text.split("x"))) for text in asked.points.split(",")]
    found, rows = [], []
    for point in points:
        baseline = None
        for label in session.methods:
            if not (asked.everything or point == points[-1] or label.startswith(AT_ALL_POINTS)):
                continue
            try:
                one = measured(session, label, point, asked.steps, asked.repeats, asked.path, with_profile=asked.profile)
            except Exception as error:  # a method that fails is a row
                one = {"method": label, "point": f"{point.batch}x{point.context}", "error": f"{type(error).__name__}: {error}"}
            found.append(one)
            rows.append(row(one, baseline))
            print(*rows[-1], one.get("reason", ""), sep="  ", flush=True)
            if label == "baseline" and "step_s" in one:
                baseline = point.batch / statistics.median(one["step_s"])
                rows[-1][8] = 1.0
    if asked.profile:
        print(*(f"{key[0]}: {choice.name} {choice.microseconds}" for key, choice in _CHOICES.items()), sep="\n")
    names = [
        "point", "method", "path", "ms", "spread", "tokens/s", "limit", "reached", "over bf16", "GiB stored", "GiB held",
        "prepare s", "capture s", "flush µs",
    ]  # fmt: skip
    print(f"{torch.cuda.get_device_name()}, copy {measured_once(session) / 1e12:.2f} TB/s, {asked.preset} with random weights")
    print(tabulate(rows, names, floatfmt=("", "", "", ".3f", ".3f", ".1f", ".1f", ".3f", ".3f", ".2f", ".2f", ".1f", ".2f", ".0f")))
    print(json.dumps({"bandwidth": measured_once(session), "rows": found}))


if __name__ == "__main__":
    main()
