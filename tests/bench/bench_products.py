"""How near the memory's limit each product of a decode step comes: every way of computing it, timed as a step's graph runs it.

The products of Qwen2.5-7B's layer and its head, with what is fused with each, over enough weights that none is in a cache.
``--tune`` times more tiles than a step chooses from. Needs a GPU.

    python tests/bench/bench_products.py [--rows 1,8,32] [--tune]
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from benching import arguments, closing, option, table

from kvbench.fused import choice
from kvbench.fused.glue import add_linear_for, norm_gated_for, norm_linear_for
from kvbench.fused.kernels import linear
from kvbench.instruments.roofline import copy_bandwidth

SHAPES = {"qkv": (4608, 3584), "o": (3584, 3584), "gate_up": (37888, 3584), "down": (3584, 18944), "head": (152064, 3584)}
ENOUGH = 600 << 20
MORE_TILES = (
    (128, 128, 4, 5, 1), (128, 128, 8, 5, 1), (128, 64, 4, 4, 2), (64, 128, 4, 4, 2), (64, 128, 4, 4, 0), (64, 256, 4, 3, 1),
    (32, 256, 4, 6, 1), (32, 256, 4, 4, 0), (32, 128, 4, 11, 1), (256, 64, 8, 5, 1),
)  # fmt: skip
COLUMNS = {
    "rows": "{rows:}", "product": "{product}", "MiB ahead": "{ahead:.1f}", "way": "{way}", "µs": "{us:.1f}", "limit µs": "{limit:.1f}",
    "reached": "{reached:.0%}",
}  # fmt: skip


def main() -> None:
    given = arguments(
        __doc__, rows="1,8,32", only="", tune=False, ahead=option("", "megabytes fetched ahead of time, several to compare them")
    )  # fmt: skip
    if given.tune:
        linear._SEVERAL += MORE_TILES
    bandwidth = copy_bandwidth(torch.device("cuda"))
    aheads = [int(float(text) * 2**20) for text in given.ahead.split(",")] if given.ahead else [linear._AHEAD]
    names = [name for name in SHAPES if not given.only or name in given.only.split(",")]
    found: list[dict[str, Any]] = []
    for rows, name, ahead in itertools.product(map(int, given.rows.split(",")), names, aheads):
        linear._AHEAD = ahead
        choice._CHOICES.clear()
        outputs, inputs = SHAPES[name]
        limit = outputs * inputs * 2 / bandwidth * 1e6
        what = {"rows": rows, "product": name, "ahead": ahead / 2**20}
        for way, us in sorted(_chosen(name, rows).microseconds.items(), key=lambda pair: pair[1]):
            found.append({**what, "way": way, "us": us, "limit": limit, "reached": limit / us})
    table(found, COLUMNS)
    products = [list(row.values()) for row in found]
    closing("products", device=torch.cuda.get_device_name(), bandwidth=bandwidth, products=products)


def _chosen(name: str, rows: int) -> choice.Choice:
    outputs, inputs = SHAPES[name]
    count = -(-ENOUGH // (outputs * inputs * 2))
    weights = [torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) / 60 for _ in range(count)]
    norm = torch.ones(inputs, device="cuda", dtype=torch.bfloat16)
    if name == "gate_up":
        return norm_gated_for(norm, 1e-6, weights[0], None, "silu", rows, peers=weights).choice
    if name in ("o", "down"):
        return add_linear_for(weights[0], None, rows, peers=weights).choice
    bias = torch.zeros(outputs, device="cuda", dtype=torch.bfloat16) if name == "qkv" else None
    return norm_linear_for(norm, 1e-6, weights[0], bias, rows, peers=weights).choice


if __name__ == "__main__":
    main()
