"""Bytes that a method will store, found by storing one layer of random numbers: the same code that will run."""

from __future__ import annotations

import torch

from kvbench.caches.layer import LayerCache, LayerContext, prompt_view
from kvbench.caches.observe import Observer
from kvbench.caches.rope import Rope
from kvbench.calibration import stand_ins
from kvbench.methods.base import Method
from kvbench.shape import Shape

_AUTO = "bfloat16"


def expected_bytes(method: Method, shape: Shape, context: int, cache_dtype: str = "auto") -> int | None:
    """Stored bytes of one sequence of ``context`` tokens over all layers, before any model is loaded.

    ``None`` where a calibration decides sizes (a rank by retained energy).

    Exact for methods whose layers store alike or whose counts depend on the length alone; a method that
    decides by threshold stores what its scores say.
    """
    dtype = getattr(torch, _AUTO if cache_dtype == "auto" else cache_dtype)
    artefacts = stand_ins(method.artefacts, shape)
    if artefacts is None:
        return None

    def layer_bytes(index: int) -> int:
        rope = Rope(_plain_rope(shape.head_dim))
        sizes = (shape.layers, shape.heads, shape.kv_heads, shape.head_dim)
        where = LayerContext(index, *sizes, dtype, context=context, rope=rope, artefacts=artefacts)
        return _layer_bytes(method, where, context)

    ends = [layer_bytes(index) for index in (0, shape.layers - 1)]
    if ends[0] == ends[1]:  # budgets that differ by layer do so monotonically
        return ends[0] * shape.layers
    return sum(layer_bytes(index) for index in range(shape.layers))


def _layer_bytes(method: Method, where: LayerContext, context: int) -> int:
    generator = torch.Generator().manual_seed(where.index)
    layer: LayerCache = method.layer(where)
    keys = torch.randn(1, where.kv_heads, context, where.head_dim, generator=generator)
    queries = torch.randn(1, where.heads, min(context, 128), where.head_dim, generator=generator)
    observer = Observer(layer.needs, layer.scaling, where.rope)
    observer.follow(queries, keys, context - queries.shape[2])
    layer.adopt(prompt_view(keys, keys, layer.scaling, observer, where))
    return layer.ledger().stored


def _plain_rope(head_dim: int) -> object:
    inverse = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)

    def tables(x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions[..., None].float() * inverse
        turned = torch.cat((angles, angles), -1)
        return turned.cos(), turned.sin()

    return tables
