"""A value basis folded into an attention module's own projections, so that it costs no work per token.

With ``W_v`` of a head group and its basis ``B`` (``v = W_v x``, ``c = Bᵀ v``, ``o = W_o [Σ p B c]``), the module computes
``(Bᵀ W_v) x`` and ``(W_o B) Σ p c`` instead: coefficients come out of the value projection and go into the output
projection (Palu, arXiv 2407.21118, §3.1, folds the output side; its latent is the value side). In a deployment the
folded weights replace the module's own and are smaller; here they are swapped in while tokens pass, and the model is
left as it was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvbench.caches.fold import Fold
from kvbench.caches.lowrank import LowRankLayer

PLAIN = frozenset({
    "GemmaAttention", "GraniteAttention", "LlamaAttention", "MistralAttention", "MixtralAttention", "Qwen2Attention", "Qwen2MoeAttention",
    "Qwen3Attention", "Qwen3MoeAttention", "SmolLM3Attention", "Starcoder2Attention",
})  # fmt: skip
"""Attention modules whose cached values are ``v_proj``'s output as it is, and whose sums enter ``o_proj`` as they are."""
KEPT = 4
"""Methods whose folded weights are held at a time, the latest used."""


@dataclass
class Folds:
    """Folded projections of one model, computed once a layer and basis; those of the latest methods are kept."""

    held: OrderedDict[tuple[int, str], Fold] = field(default_factory=OrderedDict)

    def of(self, layer: LowRankLayer) -> Fold:
        """The layer's fold, computed at its first use."""
        key = layer.context.index, layer.values_store.projection.name
        if key not in self.held:
            self.held[key] = fold(layer)
        self.held.move_to_end(key)
        while len(self.held) > KEPT * layer.context.layers:
            self.held.popitem(last=False)
        return self.held[key]


@contextmanager
def folded(cache: object, folds: Folds) -> Iterator[None]:
    """While open, tokens that pass through the model reach ``cache``'s low-rank layers as coefficients, where that can be.

    The modules get their own projections back at the end, whatever happens; other caches change nothing.
    """
    layers = [layer for layer in getattr(cache, "layers", ()) if can_fold(layer)]
    swaps: list[tuple[LowRankLayer, Any]] = [(layer, layer.context.module) for layer in layers]
    own = [(module.v_proj, module.o_proj) for _, module in swaps]
    try:
        for layer, module in swaps:
            layer.fold, layer.folded = folds.of(layer), True
            module.v_proj, module.o_proj = layer.fold.v_proj, layer.fold.o_proj
        yield
    finally:
        for (layer, module), (v_proj, o_proj) in zip(swaps, own, strict=True):
            layer.folded, module.v_proj, module.o_proj = False, v_proj, o_proj


def can_fold(layer: object) -> TypeGuard[LowRankLayer]:
    """Whether the layer's next tokens may come through folded projections.

    A prompt whose own attention is uncompressed needs whole values, and rows of different lengths are walked one by one.
    """
    if not isinstance(layer, LowRankLayer):
        return False
    module, named = layer.context.module, layer.values_store.projection.name
    waits = layer.seen == 0 and layer.context.protocol == "prefill"
    if module is None or not named or waits or layer.rows or type(module).__name__ not in PLAIN:
        return False
    both = (getattr(module, "v_proj", None), getattr(module, "o_proj", None))
    return all(type(p) is nn.Linear and p.weight.device.type != "meta" for p in both)


def fold(layer: LowRankLayer) -> Fold:
    """The layer's basis in its module's projections; computed in float32 or wider."""
    module: Any = layer.context.module
    groups, _, rank = layer.values_store.projection.basis.shape
    v, o = _fold_values(layer, module.v_proj), _fold_sums(layer, module.o_proj)
    held = tuple(t for linear in (v, o) for t in (linear.weight, linear.bias) if t is not None)
    return Fold(v, o, groups, rank, held)


def _fold_values(layer: LowRankLayer, v_proj: nn.Linear) -> nn.Linear:
    """``Bᵀ W_v`` of every head group, and ``Bᵀ b`` unless the bias is kept apart."""
    basis = _wide(layer.values_store.projection.basis, v_proj).transpose(1, 2)  # [G, r, g·D]
    groups, rank, width = basis.shape
    spare = -groups * rank % layer.context.head_dim
    weight = (basis @ _wide(v_proj.weight, v_proj).view(groups, width, -1)).flatten(0, 1)  # [G·r, hidden]
    bias = None
    if v_proj.bias is not None and layer.value_bias() is None:
        bias = F.pad((basis @ _wide(v_proj.bias, v_proj).view(groups, width, 1)).flatten(), (0, spare))
    return _linear(F.pad(weight, (0, 0, 0, spare)), bias, v_proj.weight)


def _fold_sums(layer: LowRankLayer, o_proj: nn.Linear) -> nn.Linear:
    """``W_o B`` of every query head; a value bias that is kept apart passes through ``W_o`` whole."""
    heads, kv_heads = layer.context.heads, layer.context.kv_heads
    basis = _wide(layer.values_store.projection.per_head(kv_heads), o_proj).repeat_interleave(heads // kv_heads, 0)  # [Hq, D, r]
    whole = _wide(o_proj.weight, o_proj)
    weight = torch.einsum("ohd,hdr->ohr", torch.unflatten(whole, 1, basis.shape[:2]), basis).flatten(1)  # [hidden, Hq·r]
    bias: Tensor | None = o_proj.bias
    apart = layer.value_bias()
    if apart is not None:
        through = whole @ _wide(apart, o_proj).repeat_interleave(heads // kv_heads, 0).flatten()
        bias = through if bias is None else bias + through
    return _linear(weight, bias, o_proj.weight)


def _wide(x: Tensor, like: nn.Linear) -> Tensor:
    return x.to(torch.promote_types(like.weight.dtype, torch.float32))


def _linear(weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Linear:
    """A linear layer of these numbers in ``like``'s format and place."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.to(like), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(like), requires_grad=False)
    return linear.eval()
