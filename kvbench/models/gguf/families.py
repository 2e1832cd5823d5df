"""The architectures that are understood: their tensors' names in both worlds and their shapes.

Source: llama.cpp's conversion and its tensor names (the ``gguf`` package's constants), transformers' models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvbench.models.gguf.keys import Keys

SHAPES: Mapping[str, tuple[str, ...]] = {
    "attn_k": ("keys", "hidden"),
    "attn_k_norm": ("head",),
    "attn_norm": ("hidden",),
    "attn_output": ("hidden", "queries"),
    "attn_q": ("queries", "hidden"),
    "attn_q_norm": ("head",),
    "attn_qkv": ("fused", "hidden"),
    "attn_v": ("keys", "hidden"),
    "ffn_down": ("hidden", "inner"),
    "ffn_down_exps": ("experts", "hidden", "expert"),
    "ffn_down_shexp": ("hidden", "shared"),
    "ffn_gate": ("inner", "hidden"),
    "ffn_gate_exps": ("experts", "expert", "hidden"),
    "ffn_gate_inp": ("experts", "hidden"),
    "ffn_gate_inp_shexp": ("hidden",),
    "ffn_gate_shexp": ("shared", "hidden"),
    "ffn_norm": ("hidden",),
    "ffn_up": ("up", "hidden"),
    "ffn_up_exps": ("experts", "expert", "hidden"),
    "ffn_up_shexp": ("shared", "hidden"),
    "post_attention_norm": ("hidden",),
    "post_ffw_norm": ("hidden",),
}
"""Rows and columns of each layer's tensors, by the names of :func:`kvbench.models.gguf.config.sizes_of`."""

ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
FOUR_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
WIDE_NORMS = {"attn_q_norm": ("queries",), "attn_k_norm": ("keys",)}
TWO = {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
DENSE = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
FUSED = {"attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj", "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}
EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}

Extra = Callable[[Keys, Mapping[str, int]], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        model_type, model_class: transformers' names.
        weights: Of one layer, GGUF's name → transformers'.
        biases: Tensors of a layer that have a bias too (and ``output_norm``).
        optional_biases: Groups of which a file has all or none, with the config field that says so.
        interleaved: Rows of queries and keys are stored with the halves of each head that turn into each other side by side.
        shifted: Norms hold one more than transformers' weight.
        partial: A part of a head's channels may turn.
        epsilon: The config field of the norms' epsilon, and the file's key.
        shapes: What differs from :data:`SHAPES`.
        extra: Fields of the config that this family alone has.
    """

    model_type: str
    model_class: str
    weights: Mapping[str, str]
    biases: tuple[str, ...] = ()
    optional_biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    interleaved: bool = False
    shifted: bool = False
    partial: bool = False
    epsilon: tuple[str, str] = ("rms_norm_eps", "attention.layer_norm_rms_epsilon")
    shapes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    extra: Extra = lambda keys, sizes: {}


def family_of(keys: Keys) -> Family | None:
    """The family of a file, or ``None`` where its architecture is not understood."""
    if keys.architecture not in ("llama", "mistral"):
        return _FAMILIES.get(keys.architecture)
    if keys.optional_size("expert_count"):
        return _MIXTRAL
    # llama.cpp has one architecture for both; a window is what tells them apart
    return _MISTRAL if keys.architecture == "mistral" or keys.optional_size("attention.sliding_window") else _LLAMA


def known() -> list[str]:
    """Architectures that are understood."""
    return sorted({"llama", "mistral", *_FAMILIES})


def _window(keys: Keys, sizes: Mapping[str, int]) -> dict[str, Any]:
    return {"sliding_window": keys.optional_size("attention.sliding_window")}


def _mixtral(keys: Keys, sizes: Mapping[str, int]) -> dict[str, Any]:
    return _window(keys, sizes) | {
        "num_local_experts": sizes["experts"],
        "num_experts_per_tok": keys.size("expert_used_count"),
        "intermediate_size": sizes["expert"],
    }


def _experts(keys: Keys, sizes: Mapping[str, int]) -> dict[str, Any]:
    return {
        "num_experts": sizes["experts"],
        "num_experts_per_tok": keys.size("expert_used_count"),
        "moe_intermediate_size": sizes["expert"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }


def _qwen2_moe(keys: Keys, sizes: Mapping[str, int]) -> dict[str, Any]:
    return _experts(keys, sizes) | {"shared_expert_intermediate_size": sizes["shared"], "norm_topk_prob": False}


def _qwen3_moe(keys: Keys, sizes: Mapping[str, int]) -> dict[str, Any]:
    norm = keys.get("expert_weights_norm")
    if norm not in (None, True):
        raise keys.refused("qwen3moe.expert_weights_norm", norm)
    return _experts(keys, sizes) | {"norm_topk_prob": True, "attention_bias": False}


def _phi3(keys: Keys, sizes: Mapping[str, int]) -> dict[str, Any]:
    if sizes["head"] * sizes["heads"] != sizes["hidden"]:
        raise keys.refused("phi3.attention.key_length", sizes["head"])
    original = keys.size("rope.scaling.original_context_length", sizes["context"])
    return _window(keys, sizes) | {"original_max_position_embeddings": original}


def _gemma(keys: Keys, sizes: Mapping[str, int]) -> dict[str, Any]:
    return {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"}


def _query_scale(keys: Keys, sizes: Mapping[str, int], layers_of_27b: int) -> float:
    """``query_pre_attn_scalar``: the head's size, but hidden / heads in the models of 27B (not in the file; llama.cpp)."""
    scale = keys.optional("attention.scale")
    if scale:
        return float(scale**-2)
    return sizes["hidden"] // sizes["heads"] if sizes["layers"] == layers_of_27b else sizes["head"]


def _gemma2(keys: Keys, sizes: Mapping[str, int]) -> dict[str, Any]:
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _query_scale(keys, sizes, 46),
        "sliding_window": keys.size("attention.sliding_window", 4096),
        "layer_types": _kinds(keys, sizes, 2),
        # llama.cpp caps at these where the file says nothing
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
    }


def _gemma3(keys: Keys, sizes: Mapping[str, int]) -> dict[str, Any]:
    window = keys.optional_size("attention.sliding_window")
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _query_scale(keys, sizes, 62),
        "sliding_window": window or sizes["context"],
        "layer_types": _kinds(keys, sizes, 6 if window else 1),
        "attn_logit_softcapping": keys.optional("attn_logit_softcapping"),
        "final_logit_softcapping": keys.optional("final_logit_softcapping"),
    }


def _kinds(keys: Keys, sizes: Mapping[str, int], period: int) -> list[str]:
    """Which layers slide: those that a list in the file marks, or all but the last of each ``period``."""
    marks = keys.items("attention.sliding_window_pattern")
    if len(marks) not in (0, sizes["layers"]):
        raise keys.refused(f"{keys.architecture}.attention.sliding_window_pattern", f"{len(marks)} layers of {sizes['layers']}")
    if not marks:
        period = keys.size("attention.sliding_window_pattern", period)
        marks = [(layer + 1) % period for layer in range(sizes["layers"])]
    return ["sliding_attention" if slides else "full_attention" for slides in marks]


def _granite(keys: Keys, sizes: Mapping[str, int]) -> dict[str, Any]:
    return {
        "attention_multiplier": float(keys.optional("attention.scale") or sizes["head"] ** -0.5),
        "embedding_multiplier": float(keys.optional("embedding_scale") or 1.0),
        "residual_multiplier": float(keys.optional("residual_scale") or 1.0),
        "logits_scaling": float(keys.optional("logit_scale") or 1.0),
    }


def _starcoder2(keys: Keys, sizes: Mapping[str, int]) -> dict[str, Any]:
    return _window(keys, sizes) | {"use_bias": True, "hidden_act": "gelu_pytorch_tanh"}


_BIASED = {"attention_bias": ("attn_q", "attn_k", "attn_v", "attn_output"), "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down")}
_PLAIN = ATTENTION | NORMS | DENSE
_QKV = ("attn_q", "attn_k", "attn_v")
_LLAMA = Family("llama", "LlamaForCausalLM", _PLAIN, optional_biases=_BIASED, interleaved=True)
_MISTRAL = Family("mistral", "MistralForCausalLM", _PLAIN, interleaved=True, extra=_window)
_MIXTRAL = Family("mixtral", "MixtralForCausalLM", ATTENTION | NORMS | MIXTRAL, interleaved=True, extra=_mixtral)
_FAMILIES: Mapping[str, Family] = {
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _PLAIN, biases=_QKV, extra=lambda keys, sizes: {"use_sliding_window": False}),
    "qwen2moe": Family("qwen2_moe", "Qwen2MoeForCausalLM", ATTENTION | NORMS | EXPERTS | SHARED, biases=_QKV, extra=_qwen2_moe),
    "qwen3": Family(
        "qwen3",
        "Qwen3ForCausalLM",
        _PLAIN | HEAD_NORMS,
        optional_biases={"attention_bias": _BIASED["attention_bias"]},
        extra=lambda keys, sizes: {"use_sliding_window": False},
    ),
    "qwen3moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", ATTENTION | HEAD_NORMS | NORMS | EXPERTS, extra=_qwen3_moe),
    "granite": Family("granite", "GraniteForCausalLM", _PLAIN, optional_biases=_BIASED, interleaved=True, extra=_granite),
    "olmo2": Family("olmo2", "Olmo2ForCausalLM", ATTENTION | HEAD_NORMS | AFTER | DENSE, shapes=WIDE_NORMS),
    "starcoder2": Family(
        "starcoder2",
        "Starcoder2ForCausalLM",
        ATTENTION | NORMS | TWO,
        biases=(*ATTENTION, *NORMS, *TWO, "output_norm"),
        epsilon=("norm_epsilon", "attention.layer_norm_epsilon"),
        extra=_starcoder2,
    ),
    "phi3": Family("phi3", "Phi3ForCausalLM", NORMS | FUSED, partial=True, extra=_phi3),
    "gemma": Family("gemma", "GemmaForCausalLM", _PLAIN, shifted=True, extra=_gemma),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", ATTENTION | FOUR_NORMS | DENSE, shifted=True, extra=_gemma2),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", ATTENTION | HEAD_NORMS | FOUR_NORMS | DENSE, shifted=True, extra=_gemma3),
}
