"""Decode steps against the byte roofline: the bf16 baseline by batch and context, and what every method's bytes buy.

Qwen2.5-7B's shape with random weights, caches drawn at random (their content changes no time), one run: every limit is
from the copy bandwidth measured in it, every ratio over its own baseline. Needs a GPU of 141 GB for the largest point.

    python tests/bench/bench_decode.py [--points 1x2048,1x32768,8x32768,32x8192,32x32768] [--methods ...] [--repeats 5]
"""

from __future__ import annotations

import gc
from argparse import Namespace
from functools import partial
from statistics import median
from typing import Any

import torch
from benching import Column, arguments, closing, option, table
from opening import opened
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

from kvbench.fused.choice import _CHOICES
from kvbench.instruments.decode import SETTLING_STEPS, decoder_for
from kvbench.instruments.roofline import Roofline, measured_once
from kvbench.instruments.session import Session
from kvbench.instruments.stopwatch import Stopwatch
from kvbench.instruments.timing import timed
from kvbench.metrics.points import Point
from kvbench.spec import ModelSpec
from kvbench.spec.presets import read_preset

POINTS = "1x2048,1x32768,8x32768,32x8192,32x32768"
METHODS = (
    "baseline,int8,int4:group=64,int4,int4:k_bits=2+v_bits=2+group=64,v_lowrank:rank=64+basis=random,snapkv,adakv,"
    "snapkv++int4:group=64,adakv++int4:group=64,kivi:bits=4,kivi:bits=2,hybrid_8x"
)
"""Parameters are joined by + here and a store by ++, since , separates methods."""
AT_ALL_POINTS = ("baseline", "v_lowrank")
COLUMNS: dict[str, Column] = {
    "point": "{point}", "method": "{method}", "path": lambda row: row["error"][:60] if "error" in row else row["path"],
    "ms": "{ms:.3f}", "spread": "{spread:.3f}", "tokens/s": "{rate:.1f}", "limit": "{limit:.1f}", "reached": "{reached:.3f}",
    "over bf16": "{over_bf16:.3f}", "GiB stored": lambda row: f"{row['stored'] / 2**30:.2f}",
    "GiB held": lambda row: f"{row['held'] / 2**30:.2f}", "prepare s": "{prepare_s:.1f}", "capture s": "{capture_s:.2f}",
    "flush µs": lambda row: f"{row['flush_s'] * 1e6:.0f}",
}  # fmt: skip
Found = dict[str, Any]


def main() -> None:
    given = arguments(
        __doc__, points=POINTS, methods=METHODS, preset="qwen7b", steps=16, repeats=5, path="auto",
        profile=option(False, "also print each row's kernels by time, and which products were chosen"),
        everything=option(False, "every method at every point, not only at the last"),
    )  # fmt: skip
    labels = [one.replace("++", "\0").replace("+", ",").replace("\0", "+") for one in given.methods.split(",")]
    config = read_preset(given.preset)["model"]
    model = ModelSpec(config["id"], config["dtype"], random_weights=True, config=config["config"])
    session = opened(model, labels, context=64, samples=1)
    points = [Point(*map(int, text.split("x"))) for text in given.points.split(",")]
    found: list[Found] = []
    for point in points:
        baseline = None
        for label in session.methods:
            is_asked = given.everything or point == points[-1] or label.startswith(AT_ALL_POINTS)
            if not is_asked or (label == "random" and label not in labels):
                continue
            found.append(_tried(session, label, point, given))
            if label == "baseline":
                baseline = found[-1].get("rate")
            found[-1]["over_bf16"] = found[-1]["rate"] / baseline if baseline and "rate" in found[-1] else None
            print(*(value for name, value in found[-1].items() if name != "step_s"), sep="  ", flush=True)
    if given.profile:
        print(*(f"{key[0]}: {choice.name} {choice.microseconds}" for key, choice in _CHOICES.items()), sep="\n")  # type: ignore[index]
    print(f"{torch.cuda.get_device_name()}, copy {measured_once(session) / 1e12:.2f} TB/s, {given.preset} with random weights")
    table(found, COLUMNS)
    closing("decode", bandwidth=measured_once(session), rows=found)


def _tried(session: Session, label: str, point: Point, given: Namespace) -> Found:
    head = {"method": label, "point": f"{point.batch}x{point.context}"}
    try:
        return head | _measured(session, label, point, given)
    except Exception as error:  # a method that fails is a row
        return head | {"error": f"{type(error).__name__}: {error}"}


def _measured(session: Session, label: str, point: Point, given: Namespace) -> Found:
    """One method at one point: seconds a step of every repeat, and what it took to get there."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    filled, fill_s = timed(session.loaded.device, lambda: Stopwatch(session, point, given.path, given.steps).drawn(label))
    stored = filled.cache.ledger().stored
    reserve = max(SETTLING_STEPS.values()) + given.steps * given.repeats + 4
    decoder = decoder_for(session, label, filled.cache, path=given.path, reserve=reserve, again=filled.again)
    try:
        decoder.start(filled.first)
        decoder.steps(SETTLING_STEPS[decoder.read_path])
        held = torch.cuda.memory_allocated() - before
        steps = partial(decoder.steps, given.steps)
        times = [timed(session.loaded.device, steps)[1] / given.steps for _ in range(given.repeats)]
        if given.profile:
            print(tabulate(_profiled(decoder)[:14], ["µs a step", "launches", "kernel"], floatfmt=("9.1f", ".0f", "")), flush=True)
        weights, read = decoder.weight_bytes() or 0, decoder.read_bytes() or stored
        limit, step = Roofline(weights, read, measured_once(session)).limit(point.batch), median(times)
        return {
            "path": decoder.read_path, "reason": decoder.reason, "step_s": times, "ms": step * 1e3,
            "spread": (max(times) - min(times)) / step, "rate": point.batch / step, "limit": limit, "reached": point.batch / step / limit,
            "weights": weights, "read": read, "stored": stored, "held": held, "fill_s": fill_s,
            "prepare_s": decoder.prepare_s, "capture_s": decoder.capture_s, "flush_s": decoder.flush_s,
        }  # fmt: skip
    finally:
        decoder.close()


def _profiled(decoder: Any, steps: int = 4) -> list[tuple[float, float, str]]:
    """Where a step's time goes: microseconds a step, launches a step and the kernel's name, the longest first.

    Kernels that start while the one before them ends overlap, so their times add up to more than a step's; ``KVBENCH_PDL=0``
    starts each when the one before has ended.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        decoder.steps(steps)
        torch.cuda.synchronize()
    kernels = [(e.self_device_time_total / steps, e.count / steps, e.key[:80]) for e in seen.key_averages() if e.self_device_time_total]
    return sorted(kernels, reverse=True)


if __name__ == "__main__":
    main()
