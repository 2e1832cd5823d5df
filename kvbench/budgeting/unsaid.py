"""What a method stores that does not say so itself: one of its layers is filled with a prompt that has sizes and no numbers."""

from __future__ import annotations

import torch

from kvbench.caches.layer import LayerCache, LayerContext, prompt_view
from kvbench.caches.observe import Observer
from kvbench.caches.rope import Rope
from kvbench.calibration import stand_ins
from kvbench.methods.method import Method
from kvbench.models.shape import Shape

_NOWHERE = torch.device("meta")
_QUERIES = 128
"""Of the prompt's last, as many as any method's window is likely to hold."""


def unsaid_bytes(method: Method, shape: Shape, context: int, cache_dtype: str) -> int | None:
    """Stored bytes of one sequence of ``context`` tokens over all layers; ``None`` where numbers would decide them."""
    dtype = getattr(torch, cache_dtype)
    artefacts = stand_ins(method.artefacts, shape)
    if artefacts is None:
        return None
    held = {name: tensor.to(_NOWHERE) for name, tensor in artefacts.items()}
    sizes = (shape.layers, shape.heads, shape.kv_heads, shape.head_dim)
    rope = Rope(_plain_rope(shape.head_dim))

    def layer_bytes(index: int) -> int:
        return _layer_bytes(method, LayerContext(index, *sizes, dtype, context=context, rope=rope, artefacts=held), context)

    try:
        with _NOWHERE:
            ends = [layer_bytes(index) for index in (0, shape.layers - 1)]
            return ends[0] * shape.layers if ends[0] == ends[1] else sum(layer_bytes(index) for index in range(shape.layers))
    except Exception:  # others' code: it looks at numbers, or needs the model's own modules
        return None


def _layer_bytes(method: Method, where: LayerContext, context: int) -> int:
    layer: LayerCache = method.layer(where)
    keys = torch.empty(1, where.kv_heads, context, where.head_dim)
    queries = torch.empty(1, where.heads, min(context, _QUERIES), where.head_dim)
    observer = Observer(layer.needs, layer.scaling, where.rope, where.artefacts)
    observer.follow(queries, keys, context - queries.shape[2])
    layer.adopt(prompt_view(keys, keys, layer.scaling, observer, where))
    return layer.ledger().stored


def _plain_rope(head_dim: int) -> object:
    def tables(x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = torch.empty(*positions.shape, head_dim)
        return angles, angles

    return tables
