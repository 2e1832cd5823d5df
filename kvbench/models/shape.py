"""What a ``transformers`` config says about a model's attention, read without torch.

A model whose attention kvbench would measure wrongly is refused here, by name and reason, before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvbench.errors import UnsupportedModel

INTERLEAVED_ROPE = {
    "blt", "codegen", "cohere", "cohere2", "cohere2_moe", "deepseek_v4", "ernie4_5", "ernie4_5_moe", "glm", "glm4", "gptj",
    "helium", "llama4", "llama4_text",
}  # fmt: skip
"""Families that rotate neighbouring channels (0, 1), (2, 3) …, where kvbench's methods undo the half-split rotation."""

WITHOUT_ROPE = {
    "bert", "biogpt", "bloom", "ctrl", "gpt2", "gpt_bigcode", "gpt_neo", "mpt", "openai-gpt", "opt", "prophetnet", "reformer",
    "roberta", "xglm", "xlnet",
}  # fmt: skip
"""Families whose positions are learned, added to scores (ALiBi) or absent."""

OTHER_ATTENTION: Mapping[str, str] = {
    "afmoe": "layers without rotary position embedding",
    "deepseek_v2": "latent attention",
    "deepseek_v3": "latent attention",
    "diffllama": "differential attention",
    "doge": "dynamic-mask attention",
    "exaone4": "layers without rotary position embedding",
    "exaone_moe": "layers without rotary position embedding",
    "falcon_h1": "state-space layers",
    "falcon_mamba": "state-space layers",
    "gemma2": "soft-capped attention scores",
    "gpt_oss": "learned attention sinks",
    "jetmoe": "a mixture of attention heads",
    "mamba": "state-space layers",
    "mamba2": "state-space layers",
    "mllama": "cross-attention to images",
    "nanochat": "a rotation of its own",
    "recurrent_gemma": "recurrent layers",
    "rwkv": "recurrent layers",
    "xlstm": "recurrent layers",
}

ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention", "attention"})
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
Config = Mapping[str, Any]
MEASURED = "use a text model whose layers all have plain softmax attention and the same half-split rotation: Llama, Qwen2/3, Mistral, Phi-3"
"""What can be measured, for those whose model cannot be."""


@dataclass(frozen=True)
class Shape:
    """The sizes that a key-value cache depends on.

    Attributes:
        layers: Decoder layers, each with one cache.
        heads, kv_heads: Query heads and key-value heads of a layer.
        head_dim: Channels of one head.
        hidden_size: Width of the residual stream.
        vocab_size: Rows of the output head.
        max_positions: Longest sequence that the model was made for, tokens.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    max_positions: int


def shape_of(config: Config) -> Shape:
    """Read the shape from a config's plain dict (``config.to_dict()`` or ``config.json``).

    Raises:
        UnsupportedModel: the config has no single attention shape (several modalities, layers of different sizes).
    """
    sizes = {key: _size(config, key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")}
    heads = sizes["num_attention_heads"]
    return Shape(
        layers=sizes["num_hidden_layers"],
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", heads),
        head_dim=_size(config, "head_dim", sizes["hidden_size"] // heads),
        hidden_size=sizes["hidden_size"],
        vocab_size=sizes["vocab_size"],
        max_positions=_size(config, "max_position_embeddings", 0),
    )


ITEM_SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""A cache's number format → bytes of a number."""


def cache_bytes_per_token(shape: Shape, itemsize: int) -> int:
    """Bytes of one token's keys and values over all layers, in numbers of ``itemsize`` bytes."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * itemsize


def check_supported(config: Config | Any, length: int = 0) -> None:
    """Refuse a model whose attention kvbench would measure wrongly.

    Args:
        config: A ``transformers`` config or its plain dict.
        length: Tokens of the longest sequence that will be read; 0 leaves length-dependent rules out.

    Raises:
        UnsupportedModel: names the model type and the reason.
    """
    plain: Config = config if isinstance(config, Mapping) else config.to_dict()
    for rule in _RULES:
        reason = rule(plain)
        if reason:
            raise refusal(plain, reason)
    for long_rule in (_short_window, _changing_rope):
        reason = long_rule(plain, length)
        if reason:
            hint = "make --context plus --continuation shorter, or use another --model"
            raise UnsupportedModel(f"model type '{_type(plain)}' cannot be benchmarked at this length: {reason}", hint=hint)
    shape_of(plain)


def refusal(config: Config, reason: str) -> UnsupportedModel:
    """The error that refuses a model for ``reason``."""
    text = f"model type '{_type(config)}' cannot be benchmarked: {reason}"
    return UnsupportedModel(text, hint=MEASURED)


def _type(config: Config) -> str:
    return str(config.get("model_type") or "unknown")


def _size(config: Config, key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        what = "its config has no" if value is None else "its layers differ in"
        raise refusal(config, f"{what} {key}")
    if value < 1 and key != "max_position_embeddings":
        raise refusal(config, f"its {key} is {value}")
    return value


def _not_a_decoder(config: Config) -> str | None:
    if config.get("is_encoder_decoder"):
        return "it is an encoder-decoder model"
    if "num_hidden_layers" not in config and "text_config" in config:
        return "it takes more than text; kvbench loads language models alone"
    return None


def _another_family(config: Config) -> str | None:
    name = _type(config)
    if name in INTERLEAVED_ROPE:
        return "its rotary embedding turns neighbouring channels (interleaved), not halves"
    if name in WITHOUT_ROPE:
        return "it has no rotary position embedding"
    if name == "gemma2" and config.get("attn_logit_softcapping", 50.0) is None:
        return None
    return f"it has {OTHER_ATTENTION[name]}" if name in OTHER_ATTENTION else None


def _latent(config: Config) -> str | None:
    return "it uses latent attention (kv_lora_rank)" if config.get("kv_lora_rank") else None


def _capped(config: Config) -> str | None:
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key):
            return f"it soft-caps its logits ({key} {config[key]})"
    for key in ("logits_scaling", "logit_scale"):
        if config.get(key) not in (None, 1, 1.0):
            return f"its output head scales the logits ({key} {config[key]})"
    return None


def _strange_layers(config: Config) -> str | None:
    kinds = {str(kind) for key in ("layer_types", "layers_block_type") for kind in config.get(key) or ()}
    others = sorted(kinds - ATTENTION_LAYERS)
    if others:
        return f"it has layers of kind {', '.join(others)}"
    if config.get("num_kv_shared_layers"):
        return "some of its layers share one cache"
    if 0 in (config.get("no_rope_layers") or ()):
        return "some of its layers have no rotary position embedding"
    return None


def _rope(config: Config) -> dict[str, Any]:
    return dict(config.get("rope_parameters") or config.get("rope_scaling") or {})


def _two_ropes(config: Config) -> str | None:
    nested = any(isinstance(value, Mapping) for value in _rope(config).values())
    if nested or config.get("rope_local_base_freq"):
        return "its sliding and full layers rotate keys differently"
    return None


def _window(config: Config) -> int | None:
    """Tokens that a sliding layer sees, or ``None`` where no layer slides."""
    window = config.get("sliding_window")
    kinds = config.get("layer_types")
    slides = "sliding_attention" in kinds if kinds else config.get("use_sliding_window", not _type(config).startswith("qwen"))
    return int(window) if window and slides else None


def _short_window(config: Config, length: int) -> str | None:
    window = _window(config)
    if window is None or length <= window:
        return None
    return f"its sliding layers see {window:,} tokens and the run reads {length:,}"


def _changing_rope(config: Config, length: int) -> str | None:
    rope = _rope(config)
    kind = rope.get("rope_type") or rope.get("type")
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    limit = original or config.get("max_position_embeddings") or 0
    if kind not in LENGTH_DEPENDENT_ROPE or length <= limit:
        return None
    return f"its rotary frequencies change beyond {limit:,} tokens ({kind}) and the run reads {length:,}"


_RULES: tuple[Callable[[Config], str | None], ...] = (_not_a_decoder, _another_family, _latent, _capped, _strange_layers, _two_ropes)
