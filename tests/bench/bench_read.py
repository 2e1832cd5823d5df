"""How near its memory's limit each read kernel comes, by format: bytes read over time, and over a copy's in the same run.

One layer of Qwen2.5-7B's shape (28 query and 4 KV heads of 128), filled at random, larger than any cache. ``--tune``
times several ways of compiling each kernel. Needs a GPU.

    python tests/bench/bench_read.py [--batch 32] [--context 32768] [--tune]
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from benching import Column, arguments, closing, option, picked, table

from kvbench.fused import launch as launching
from kvbench.fused.layout import TILE, Format
from kvbench.fused.storage import Plane, Region
from kvbench.fused.taken import Taken
from kvbench.instruments.roofline import copy_bandwidth

HEADS, KV_HEADS, SIZE = 28, 4, 128
IN_A_GRAPH = 8
FORMATS: dict[str, tuple[Format, Format]] = {
    "bf16": (Format(SIZE), Format(SIZE)),
    "bf16, V rank 64": (Format(SIZE), Format(64)),
    "int8": (Format(SIZE, 8, 128), Format(SIZE, 8, 128)),
    "int4, groups of 64": (Format(SIZE, 4, 64, False), Format(SIZE, 4, 64, False)),
    "int4, groups of 32": (Format(SIZE, 4, 32, False), Format(SIZE, 4, 32, False)),
    "int2, groups of 64": (Format(SIZE, 2, 64, False), Format(SIZE, 2, 64, False)),
    "int2, groups of 32": (Format(SIZE, 2, 32, False), Format(SIZE, 2, 32, False)),
    "K int8, V int4": (Format(SIZE, 8, 128), Format(SIZE, 4, 64, False)),
}
COLUMNS: dict[str, Column] = {
    "format": "{format}", "tuning": "{tuning}", "MB": lambda row: row["error"] if "error" in row else f"{row['mb']:.2f}",
    "parts": "{parts:}", "µs": "{us:.2f}", "spread µs": "{spread_us:.2f}", "TB/s": "{tb_s:.2f}", "of copy": "{of_copy:.2f}",
}  # fmt: skip


def main() -> None:
    given = arguments(
        __doc__, batch=32, context=32768, repeats=9, tune=False, only="",
        most=option(launching.MOST_PARTS, "parts that a pair's tokens are split into at most"),
    )  # fmt: skip
    launching.MOST_PARTS = given.most
    limit = copy_bandwidth(torch.device("cuda"))
    wanted = [name for name in FORMATS if not given.only or name in given.only.split(";")]
    rows = [row for name in wanted for row in _rows(name, limit, given)]
    print(f"{torch.cuda.get_device_name()}, copy {limit / 1e12:.2f} TB/s, batch {given.batch}, context {given.context}")
    table(rows, COLUMNS)
    closing("read", copy=limit, **picked(given, "batch context"), rows=[list(row.values()) for row in rows])


def _rows(name: str, limit: float, given: Namespace) -> Iterator[dict[str, Any]]:
    """One format's, read in each way of compiling its kernel."""
    held = _region(FORMATS[name], given.batch, given.context)
    taken, size = _taken(held), held.read_bytes(1)
    for tuning in _tunings(held, tune=given.tune):
        try:
            started = launching.Launch(taken, 32, [tuning])
            query = torch.randn(given.batch, HEADS * SIZE, device="cuda", dtype=torch.bfloat16)
            times = _seconds(lambda: started.read(query), given.repeats)  # noqa: B023
        except Exception as error:  # a candidate that does not compile is a row, not the end
            yield {"format": name, "tuning": str(tuning), "error": repr(error)[:60]}
            continue
        how = f"{tuning.warps}w {tuning.stages}s {tuning.programs}p x{tuning.waves} {tuning.registers}r"
        rate = size / median(times)
        yield {
            "format": name, "tuning": how, "mb": size / 1e6, "parts": started.splits[0], "us": median(times) * 1e6,
            "spread_us": (max(times) - min(times)) * 1e6, "tb_s": rate / 1e12, "of_copy": rate / limit,
        }  # fmt: skip
    del held, taken
    torch.cuda.empty_cache()


def _plane(form: Format, slots: int, *, is_value: bool) -> Plane:
    """Random numbers of ``slots`` tokens."""
    if form.bits == 16:
        return Plane(form, torch.randn(slots, form.width, device="cuda", dtype=torch.bfloat16))
    deal = form.column if is_value else form.row
    shape = (slots // TILE, form.width, TILE // deal.planes) if is_value else (slots, form.width // deal.planes)
    words = torch.randint(-(1 << (deal.word - 1)), 1 << (deal.word - 1), shape, device="cuda", dtype=deal.dtype)
    scales = torch.rand(form.groups, slots, device="cuda", dtype=torch.bfloat16) / (1 << form.bits)
    if form.symmetric:
        return Plane(form, words, scales)
    return Plane(form, words, torch.stack((scales, scales), -1).view(torch.int32)[..., 0])


def _region(forms: tuple[Format, Format], batch: int, context: int) -> Region:
    pairs, room = batch * KV_HEADS, -(-(context + 64) // TILE) * TILE
    first = torch.arange(pairs, device="cuda") * room
    held = torch.full((pairs,), context, device="cuda", dtype=torch.int32)
    keys, values = _plane(forms[0], pairs * room, is_value=False), _plane(forms[1], pairs * room, is_value=True)
    return Region(first, held, pairs * context, context, True, keys, values, torch.bfloat16)


def _taken(held: Region) -> Taken:
    return Taken(HEADS, KV_HEADS, SIZE, SIZE**-0.5, torch.zeros(1, dtype=torch.int32, device="cuda"), [held])


def _seconds(action: Callable[[], Any], repeats: int) -> list[float]:
    """Of one call among ``IN_A_GRAPH`` that are replayed together, so that starting them costs nothing."""
    for _ in range(2):
        action()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(IN_A_GRAPH):
            action()
    times = []
    for _ in range(repeats + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / IN_A_GRAPH)
    return times[1:]


def _tunings(held: Region, *, tune: bool) -> Iterator[launching.Tuning]:
    own = launching.tuning_of(held)
    yield own
    if tune and held.is_dense:
        for warps, stages, programs in ((4, 3, 3), (4, 2, 4), (4, 2, 6), (2, 2, 6), (8, 3, 3)):
            for waves in (1, 2, 4) if programs < 6 else (1,):
                yield replace(own, warps=warps, stages=stages, programs=programs, waves=waves)
    elif tune:
        for stages, registers, programs in ((2, 0, 8), (2, 168, 12), (3, 0, 6), (3, 0, 8), (3, 200, 10), (3, 168, 12)):
            for waves in (1, 2, 3, 4):
                yield replace(own, stages=stages, registers=registers, programs=programs, waves=waves)


if __name__ == "__main__":
    main()
