"""A decode step of a known family: the merged weights through fused norms, gates and products, around each layer's own attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.fused.glue import AddLinear, NormGated, NormLinear, add_linear_for, norm_gated_for, norm_linear_for
from kvbench.fused.merged_weights import LayerWeights, ModelWeights, Norm, merged_weights

if TYPE_CHECKING:
    from kvbench.fused.layer import FusedLayer, FusedState


@dataclass(frozen=True)
class _Layer:
    """One decoder layer, ready for a number of rows."""

    qkv: NormLinear
    attention: FusedLayer
    o: AddLinear
    gated: NormGated
    down: AddLinear
    q_norm: Norm | None
    k_norm: Norm | None

    def __call__(self, stream: Tensor, cos: Tensor, sin: Tensor) -> None:
        q_norm, k_norm = (None if norm is None else norm.weight for norm in (self.q_norm, self.k_norm))
        eps = 0.0 if self.q_norm is None else self.q_norm.eps
        sums = self.attention.attend_raw(self.qkv(stream), cos, sin, q_norm, k_norm, eps)
        self.o(sums, stream)
        self.down(self.gated(stream), stream)


class NativeStep:
    """``(token [B], count [1]) → logits [B, vocabulary]``, storing each token in ``state`` as the count-th since it was made.

    Args:
        model: Of a family that :func:`~kvbench.fused.merged_weights.is_known`, on one device; its weights are merged in place, once.
        rows: B. What is fastest for so many rows is timed here, on the device.
    """

    def __init__(self, model: Any, state: FusedState, rows: int) -> None:
        weights = merged_weights(model)
        self._embedding = weights.embedding.weight
        self._turns = _turns(weights, state)
        layers = [_own(own, attention) for own, attention in zip(weights.layers, state.layers, strict=True)]
        self._layers = [_layer(own, attention, rows, layers) for own, attention in zip(layers, state.layers, strict=True)]
        self._head = norm_linear_for(weights.norm.weight, weights.norm.eps, weights.head.weight, weights.head.bias, rows)

    def __call__(self, token: Tensor, count: Tensor) -> Tensor:
        cos, sin = self._turns.index_select(1, count)  # [1, R] each
        stream = F.embedding(token, self._embedding)  # [B, hidden], this step's own: the layers add to it in place
        for layer in self._layers:
            layer(stream, cos, sin)
        return self._head(stream)


def _turns(weights: ModelWeights, state: FusedState) -> Tensor:
    """The model's own cosines and sines ``[2, reserve, R]`` of every position that the state has room for.

    Worked out once: a step then looks one row up instead of running the eight or so small kernels that give the same numbers.
    """
    like = weights.embedding.weight
    positions = torch.arange(state.seen, state.seen + state.reserve, device=like.device)[None]
    cos, sin = weights.rotary(like.new_empty(1), positions)
    return torch.stack((cos[0], sin[0]))


def _own(weights: LayerWeights, attention: FusedLayer) -> LayerWeights:
    """A layer's weights, with its value basis folded in where it has one."""
    fold, taken = attention.fold, attention.taken
    return weights if fold is None else weights.folded(fold, value_rows=taken.kv_heads * taken.head_dim)


def _layer(own: LayerWeights, attention: FusedLayer, rows: int, layers: Sequence[LayerWeights]) -> _Layer:
    """One layer, its products chosen by timing them over all ``layers``, as a step runs them."""
    i, p, g = own.input_norm, own.mlp_norm, own.gate_up
    qkv, o, gate_up, down = ([getattr(each, name).weight for each in layers] for name in ("qkv", "o", "gate_up", "down"))
    return _Layer(
        qkv=norm_linear_for(i.weight, i.eps, own.qkv.weight, own.qkv.bias, rows, peers=_alike(own.qkv.weight, qkv)),
        attention=attention,
        o=add_linear_for(own.o.weight, own.o.bias, rows, peers=_alike(own.o.weight, o)),
        gated=norm_gated_for(p.weight, p.eps, g.weight, g.bias, own.activation, rows, peers=_alike(g.weight, gate_up)),
        down=add_linear_for(own.down.weight, own.down.bias, rows, peers=_alike(own.down.weight, down)),
        q_norm=own.q_norm,
        k_norm=own.k_norm,
    )


def _alike(weight: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Those of ``weight``'s shape: layers may be cut to ranks of their own."""
    return [each for each in weights if each.shape == weight.shape]
