"""Bytes that a method will store, found by storing one layer of random numbers: the same code that will run."""

from __future__ import annotations

import torch

from kvbench.caches.layer import LayerCache, LayerContext, prompt_view
from kvbench.caches.observe import Observer
from kvbench.caches.rope import Rope
from kvbench.methods.base import Method
from kvbench.shape import Shape

_AUTO = "bfloat16"


def expected_bytes(method: Method, shape: Shape, context: int, cache_dtype: str = "auto") -> int:
    """Stored bytes of one sequence of ``context`` tokens over all layers, before any model is loaded.

    Exact for methods whose layers store alike or whose counts depend on the length alone; a method that
    decides by threshold stores what its scores say.
    """
    dtype = getattr(torch, _AUTO if cache_dtype == "auto" else cache_dtype)
    ends = [_layer_bytes(method, shape, index, context, dtype) for index in (0, shape.layers - 1)]
    if ends[0] == ends[1]:  # budgets that differ by layer do so monotonically
        return ends[0] * shape.layers
    return sum(_layer_bytes(method, shape, index, context, dtype) for index in range(shape.layers))


def _layer_bytes(method: Method, shape: Shape, index: int, context: int, dtype: torch.dtype) -> int:
    generator = torch.Generator().manual_seed(index)
    basis = torch.eye(shape.head_dim).expand(shape.kv_heads, -1, -1)
    where = LayerContext(
        index, shape.layers, shape.heads, shape.kv_heads, shape.head_dim, dtype, context=context, rope=Rope(_plain_rope(shape.head_dim)),
        artefacts={"value_pca": basis, "value_random": basis},
    )  # fmt: skip
    layer: LayerCache = method.layer(where)
    keys = torch.randn(1, shape.kv_heads, context, shape.head_dim, generator=generator)
    queries = torch.randn(1, shape.heads, min(context, 128), shape.head_dim, generator=generator)
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
