"""The modules of a known family, with the weights that read the same input merged into one matrix.

``q``, ``k`` and ``v`` read the same normed stream, and so do ``gate`` and ``up``: one product over the merged rows is one
kernel and one pass at full width instead of three. Nothing is held twice: the merged matrix takes the weights' place, and
the modules' own parameters become views of its rows, so that the model goes on working as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kvbench.caches.cache import decoder_of
from kvbench.caches.fold import Fold

DECODER_LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
"""Layers that are: norm, attention by heads with half-split RoPE, add; norm, gated MLP, add. Nothing scaled, capped or skipped."""
NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "RMSNorm"})
"""Norms that weigh by ``weight`` itself (Gemma's weigh by one more)."""
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""A config's ``hidden_act`` → the fused form's name."""
FLOATS = frozenset({torch.bfloat16, torch.float16, torch.float32, torch.float64})


@dataclass(frozen=True)
class Product:
    """A linear map's numbers: weight ``[N, K]`` and bias ``[N]``."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Norm:
    """An RMS norm's weight ``[K]`` and what is added to the mean square."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer: q, k, v one after the other in ``qkv``, gate before up in ``gate_up``.

    Attributes:
        q_norm, k_norm: Norms of each head before RoPE (Qwen3), or ``None``.
        activation: The gate's, by the fused form's name.
    """

    input_norm: Norm
    qkv: Product
    o: Product
    mlp_norm: Norm
    gate_up: Product
    down: Product
    q_norm: Norm | None
    k_norm: Norm | None
    activation: str

    def folded(self, fold: Fold, value_rows: int) -> LayerWeights:
        """These weights with a value basis folded in, for one method's state; the model's modules stay as they are.

        Args:
            fold: Whose ``v_proj`` (but for its rows of padding) and ``o_proj`` stand in for the module's.
            value_rows: Rows of ``qkv`` that are the module's ``v_proj``.
        """
        rows, kept = fold.groups * fold.rank, len(self.qkv.weight) - value_rows
        weight = torch.cat((self.qkv.weight[:kept], fold.v_proj.weight[:rows]))
        own, values = self.qkv.bias, fold.v_proj.bias
        bias = None
        if own is not None or values is not None:  # a fold may keep the values' bias apart, and pass it through its o_proj
            ends = (weight.new_zeros(kept) if own is None else own[:kept], weight.new_zeros(rows) if values is None else values[:rows])
            bias = torch.cat(ends)
        return replace(self, qkv=Product(weight, bias), o=Product(fold.o_proj.weight, fold.o_proj.bias))


@dataclass(frozen=True)
class ModelWeights:
    """All that a step of a known family reads.

    Attributes:
        embedding: Token ids → stream. rotary: ``(x, position_ids) → (cos, sin)``. head: The last norm's output → logits.
    """

    embedding: nn.Embedding
    layers: tuple[LayerWeights, ...]
    norm: Norm
    head: Product
    rotary: nn.Module


_merged: WeakKeyDictionary[nn.Module, ModelWeights] = WeakKeyDictionary()
"""What was merged, as long as its model lives; the values hold none of the keys."""


def is_known(model: Any) -> bool:
    """Whether every module is one whose numbers :func:`merged_weights` reads as they are meant."""
    decoder, head = decoder_of(model), model.get_output_embeddings()
    parts = (getattr(decoder, "embed_tokens", None), getattr(decoder, "rotary_emb", None), getattr(decoder, "norm", None))
    if any(part is None for part in parts) or type(parts[0]) is not nn.Embedding or parts[0].max_norm is not None or not _is_plain([head]):
        return False
    formats = {p.dtype for p in model.parameters()}
    return len(formats) == 1 and formats <= FLOATS and _is_norm(parts[2]) and all(_is_known_layer(layer) for layer in decoder.layers)


def merged_weights(model: Any) -> ModelWeights:
    """The weights of a model that :func:`is_known`, merged at the first call and kept for every later one.

    Peak memory is the model and one layer's merged matrices. A model that was moved or given other tensors since is merged anew.
    """
    held = _merged.get(model)
    if held is None or not _is_current(model, held):
        # Inside inference mode the merged tensors would be inference tensors, and the model's parameters views of such.
        with torch.inference_mode(False), torch.no_grad():
            held = _merged[model] = _merge(model)
    return held


def _merge(model: Any) -> ModelWeights:
    decoder, head = decoder_of(model), model.get_output_embeddings()
    layers = tuple(_merge_layer(layer) for layer in decoder.layers)
    return ModelWeights(decoder.embed_tokens, layers, _norm(decoder.norm), Product(head.weight, head.bias), decoder.rotary_emb)


def _merge_layer(layer: Any) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    merged = LayerWeights(
        input_norm=_norm(layer.input_layernorm),
        qkv=_join(_readers(attention)),
        o=Product(attention.o_proj.weight, attention.o_proj.bias),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_up=_join((mlp.gate_proj, mlp.up_proj)),
        down=Product(mlp.down_proj.weight, mlp.down_proj.bias),
        q_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        k_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        activation=ACTIVATIONS[mlp.config.hidden_act],
    )
    if merged.qkv.weight.is_cuda:
        # The allocator keeps the parts' old blocks, too small for the next layer's merged ones: without this they add up to the model.
        torch.cuda.empty_cache()
    return merged


def _join(linears: Sequence[nn.Linear]) -> Product:
    """One map for several of the same input; their parameters become views of its rows."""
    weight = _take_over([linear.weight for linear in linears])
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return Product(weight, _take_over(biases) if biases else None)


def _take_over(parameters: Sequence[Tensor]) -> Tensor:
    """The parameters' rows one after the other; they let go of their own storage."""
    merged = torch.cat([p.detach() for p in parameters])
    for parameter, rows in zip(parameters, torch.split(merged, [len(p) for p in parameters]), strict=True):
        parameter.data = rows
    return merged


def _is_current(model: Any, held: ModelWeights) -> bool:
    """Whether the modules' parameters are still the views that they were made, in every layer, and the rest what it was."""
    decoder, head = decoder_of(model), model.get_output_embeddings()
    if held.head.weight is not head.weight or held.embedding is not decoder.embed_tokens or held.norm.weight is not decoder.norm.weight:
        return False
    return all(
        _starts(_readers(layer.self_attn), own.qkv)
        and _starts((layer.mlp.gate_proj, layer.mlp.up_proj), own.gate_up)
        and layer.self_attn.o_proj.weight is own.o.weight
        and layer.mlp.down_proj.weight is own.down.weight
        for layer, own in zip(decoder.layers, held.layers, strict=True)
    )


def _starts(linears: Sequence[nn.Linear], product: Product) -> bool:
    """Whether each map's rows lie where the merged ones do."""
    row, step = product.weight.data_ptr(), product.weight.stride(0) * product.weight.element_size()
    for linear in linears:
        if linear.weight.data_ptr() != row:
            return False
        row += len(linear.weight) * step
    return True


def _readers(attention: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def _is_known_layer(layer: Any) -> bool:
    if type(layer).__name__ not in DECODER_LAYERS:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    qkv, gates = _readers(attention), (mlp.gate_proj, mlp.up_proj)
    even = all(len({p.bias is None for p in group}) == 1 for group in (qkv, gates) if _is_plain(group))
    return even and _is_plain([*qkv, attention.o_proj, *gates, mlp.down_proj]) and all(map(_is_norm, norms)) and _is_gated(mlp)


def _is_gated(mlp: Any) -> bool:
    return getattr(mlp.config, "hidden_act", None) in ACTIVATIONS


def _is_plain(linears: Sequence[Any]) -> bool:
    """Maps whose weights are what they multiply by: neither packed, nor adapted, nor kept elsewhere."""
    return all(type(p) is nn.Linear and not p.weight.is_meta and not hasattr(p, "_hf_hook") for p in linears)


def _is_norm(module: Any) -> bool:
    return type(module).__name__ in NORMS and getattr(module, "weight", None) is not None and _eps(module) is not None


def _norm(module: Any) -> Norm:
    eps = _eps(module)
    return Norm(module.weight, 0.0 if eps is None else eps)


def _eps(module: Any) -> float | None:
    eps: float | None = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return eps
