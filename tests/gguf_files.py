"""Tiny models of many families, each as a folder and as the GGUF file that llama.cpp's converter would make of it.

Names of tensors come from the ``gguf`` package's own maps and keys from its writer, never from kvbench's tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

ARCHITECTURES = {"mistral": "llama", "mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3"}
LETTERS = 300
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
COMMON: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "vocab_size": LETTERS, "max_position_embeddings": 512, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "rope_parameters": PLAIN,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
Writer = gguf.GGUFWriter
Change = Callable[[Writer], None]


def tiny(model_type: str, **changes: Any) -> Any:
    """A model with weights large enough that every part of it changes the logits."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**COMMON, **changes})).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(
                torch.randn(weight.shape)
                * (0.3 if "embed" in name or "norm" in name or weight.ndim == 1 else 1.5 / weight.shape[-1] ** 0.5)
            )
    return model


def tokens() -> list[str]:
    """A byte-level vocabulary as large as the models' tables."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "Ġa", "bc"]
    return letters + [f"[PAD{i}]" for i in range(len(letters), LETTERS)]


def write_gguf(model: Any, file: Path, *, kind: gguf.GGMLQuantizationType | None = None, change: Change = lambda writer: None) -> Path:
    """The file that llama.cpp's converter makes of ``model``; ``change`` may add keys and tensors to it."""
    config = model.config
    name = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = Writer(file, name)
    _write_sizes(writer, config)
    _write_rope(writer, config, config.rope_parameters)
    write_tokens(writer)
    for key, tensor in gguf_tensors(model, name).items():
        coded = kind is not None and tensor.ndim > 1 and tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        writer.add_tensor(key, gguf.quants.quantize(tensor, kind) if coded else tensor, raw_dtype=kind if coded else None)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def write_tokens(writer: Writer, *, pre: str = "smollm", bos: bool = False) -> None:
    words = tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3] + [5 if word.startswith("[PAD") else 1 for word in words[3:]])
    writer.add_token_merges(["Ġ a", "b c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(bos)


def _write_sizes(writer: Writer, config: Any) -> None:
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if config.model_type == "starcoder2":
        writer.add_layer_norm_eps(config.norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(0)
    if config.model_type not in ("phi3", "olmo2", "starcoder2"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    for name, add in {
        "attn_logit_softcapping": writer.add_attn_logit_softcapping,
        "final_logit_softcapping": writer.add_final_logit_softcapping,
        "shared_expert_intermediate_size": writer.add_expert_shared_feed_forward_length,
        "moe_intermediate_size": writer.add_expert_feed_forward_length,
        "attention_multiplier": writer.add_attention_scale,
        "embedding_multiplier": writer.add_embedding_scale,
        "residual_multiplier": writer.add_residual_scale,
        "logits_scaling": writer.add_logit_scale,
        "num_experts_per_tok": writer.add_expert_used_count,
    }.items():
        if getattr(config, name, None):
            add(getattr(config, name))
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if experts:
        writer.add_expert_count(experts)
    if config.model_type in ("mistral", "mixtral", "phi3", "gemma2", "gemma3_text"):
        writer.add_sliding_window(config.sliding_window or 0)


def _write_rope(writer: Writer, config: Any, rope: Mapping[str, Any]) -> None:
    local, rope = rope.get("sliding_attention"), rope.get("full_attention", rope)
    kind, dimensions = rope["rope_type"], int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    dimensions = int(dimensions * rope.get("partial_rotary_factor", 1.0))
    writer.add_rope_freq_base(rope["rope_theta"])
    if config.model_type in ("llama", "mistral", "mixtral", "phi3"):
        writer.add_rope_dimension_count(dimensions)
    if local:
        writer.add_rope_freq_base_swa(local["rope_theta"])
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for key, add in {
            "beta_fast": writer.add_rope_scaling_yarn_beta_fast,
            "beta_slow": writer.add_rope_scaling_yarn_beta_slow,
            "attention_factor": writer.add_rope_scaling_yarn_attn_factor,
        }.items():
            if key in rope:
                add(rope[key])
    if kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(rope, dimensions))
    if kind == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        scale = config.max_position_embeddings / rope["original_max_position_embeddings"]
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(rope["original_max_position_embeddings"])))
        writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], np.float32))
        writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], np.float32))


def llama3_divisors(rope: Mapping[str, Any], dimensions: int) -> np.ndarray[Any, Any]:
    """What each frequency is divided by, taken from what transformers makes of the parameters."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.for_model("llama", head_dim=dimensions, max_position_embeddings=1 << 17, rope_parameters=dict(rope))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, dimensions, 2, dtype=torch.float64) / dimensions)
    return (plain / scaled.double()).float().numpy()


def gguf_tensors(model: Any, name: str) -> dict[str, np.ndarray[Any, Any]]:
    """The model's weights under the file's names, in the file's order of rows."""
    config = model.config
    architecture = next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    found = {}
    for key, weight in _experts_apart(model.state_dict()).items():
        array = weight.numpy()
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name in ("llama", "granite") and ("q_proj" in key or "k_proj" in key):
            array = _side_by_side(array, config.num_attention_heads if "q_proj" in key else config.num_key_value_heads)
        if name.startswith("gemma") and key.endswith("norm.weight"):
            array = array + 1
        base, suffix = key.rsplit(".", 1)
        said = names.get_name(base)
        assert said is not None, key
        found[f"{said}.{suffix}"] = np.ascontiguousarray(array.squeeze(0) if base.endswith("shared_expert_gate") else array)
    return found


def _experts_apart(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gate and up projections of all experts as two tensors."""
    apart = {}
    for key, weight in state.items():
        if key.endswith("experts.gate_up_proj"):
            gate, up = weight.chunk(2, 1)
            base = key.removesuffix("gate_up_proj")
            apart |= {f"{base}gate_proj.weight": gate, f"{base}up_proj.weight": up}
        else:
            apart[f"{key}.weight" if key.endswith("experts.down_proj") else key] = weight
    return apart


def _side_by_side(array: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Channel i of each head beside channel i + D/2."""
    halves = array.reshape(heads, 2, -1, *array.shape[1:])  # [H, 2, D/2, ...]
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(array.shape)
