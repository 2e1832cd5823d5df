"""A GGUF header as a ``transformers`` config, or the reason why it cannot be one; neither torch nor transformers is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvbench.errors import ModelError
from kvbench.models.gguf.families import Family, family_of, known
from kvbench.models.gguf.header import Header, broken
from kvbench.models.gguf.header_reading import read_header
from kvbench.models.gguf.keys import Keys
from kvbench.models.gguf.rope import rope_parameters
from kvbench.models.gguf.wanted import check_tensors, config_dtype

TOKENS = "tokenizer.ggml."
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Tokens that end an answer: of a text, of a turn, of a message."""


def gguf_config(path: Path) -> dict[str, Any]:
    """The config of a ``.gguf`` file as a plain dict (what ``config.json`` would hold), from its header alone.

    Takes some tenths of a second for any file, and imports neither torch nor transformers.

    Raises:
        ModelError: the file cannot be read, is damaged or cut short, or lacks a key or tensor.
        UnsupportedModel: its architecture, a key or a tensor is not understood; named.
    """
    return config_of(read_header(path))


def config_of(header: Header) -> dict[str, Any]:
    """As :func:`gguf_config`, of a header that was read."""
    keys = Keys(header)
    family = _family(keys)
    sizes = sizes_of(keys, family)
    config = _common(keys, family, sizes) | family.extra(keys, sizes)
    config |= {name: f"blk.0.{group[0]}.bias" in header.tensors for name, group in family.optional_biases.items()}
    config["rope_parameters"] = _rope(keys, family, sizes)
    _check_scale(keys, sizes)
    keys.finish()
    check_tensors(header, family, sizes)
    return config


def family_and_sizes(header: Header) -> tuple[Family, dict[str, int]]:
    """The family of a file that was found to be understood, and the sizes of its tensors."""
    keys = Keys(header)
    family = _family(keys)
    return family, sizes_of(keys, family)


def _family(keys: Keys) -> Family:
    family = family_of(keys)
    if family is None:
        text = f"'{keys.name}' holds a {keys.architecture!r} model, which is not read from GGUF files"
        raise ModelError(text, hint=f"use a safetensors checkpoint, or a GGUF of {', '.join(known())}")
    return family


def sizes_of(keys: Keys, family: Family) -> dict[str, int]:
    """Every size that a tensor's shape is made of, by the names in :data:`kvbench.models.gguf.families.SHAPES`."""
    embedding = keys.header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise broken(keys.header.path, "tensor 'token_embd.weight' is missing, or no table")
    vocabulary = embedding.shape[0]
    if keys.size("vocab_size", vocabulary) != vocabulary:
        raise broken(keys.header.path, f"key 'vocab_size' is {keys.get('vocab_size'):,} and 'token_embd.weight' has {vocabulary:,} rows")
    heads = keys.size("attention.head_count")
    kv_heads = keys.size("attention.head_count_kv", heads)
    sizes = {
        "vocabulary": vocabulary,
        "context": keys.size("context_length"),
        "layers": keys.size("block_count"),
        "hidden": keys.size("embedding_length"),
        "heads": heads,
        "kv_heads": kv_heads,
    }
    head = sizes["head"] = _head(keys, family, sizes)
    sizes |= {"queries": heads * head, "keys": kv_heads * head, "fused": (heads + 2 * kv_heads) * head}
    return sizes | _inner(keys, family)


def _head(keys: Keys, family: Family, sizes: Mapping[str, int]) -> int:
    """Channels of a head: said, or told by what turns (old files), or the even share."""
    even = sizes["hidden"] // sizes["heads"]
    head = keys.size("attention.key_length", even if family.partial else keys.size("rope.dimension_count", even))
    for key in ("attention.value_length",) + (() if family.partial else ("rope.dimension_count",)):
        if keys.size(key, head) != head:
            raise keys.refused(f"{keys.architecture}.{key}", f"{keys.get(key)} where keys have {head} channels")
    return head


def _inner(keys: Keys, family: Family) -> dict[str, int]:
    """Widths of the feed-forward parts; a file of experts may leave out the width of what it has not."""
    if "ffn_gate_inp" not in family.weights:
        width = keys.size("feed_forward_length")
        return {"inner": width, "up": 2 * width if "attn_qkv" in family.weights else width}
    experts = keys.size("expert_count")
    tables = {name: keys.header.tensors.get(f"blk.0.{name}.weight") for name in ("ffn_gate_exps", "ffn_gate_shexp")}
    rows = {name: table.shape[-2] if table and len(table.shape) > 1 else 1 for name, table in tables.items()}
    return {
        "experts": experts,
        "inner": keys.size("feed_forward_length", rows["ffn_gate_exps"]),
        "expert": keys.size("expert_feed_forward_length", rows["ffn_gate_exps"]),
        "shared": keys.size("expert_shared_feed_forward_length", rows["ffn_gate_shexp"]),
    }


def _common(keys: Keys, family: Family, sizes: Mapping[str, int]) -> dict[str, Any]:
    tokens = {name: _token(keys.header, name, sizes["vocabulary"]) for name in ("bos_token_id", "padding_token_id", *ENDS)}
    ends = list(dict.fromkeys(tokens[name] for name in ENDS if tokens[name] is not None))
    return {
        "model_type": family.model_type,
        "architectures": [family.model_class],
        "dtype": config_dtype(keys.header),
        "hidden_size": sizes["hidden"],
        "intermediate_size": keys.size("feed_forward_length", sizes["inner"]),
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"],
        "head_dim": sizes["head"],
        "max_position_embeddings": sizes["context"],
        family.epsilon[0]: keys.number(family.epsilon[1]),
        "vocab_size": sizes["vocabulary"],
        "tie_word_embeddings": "output.weight" not in keys.header.tensors,
        "bos_token_id": tokens["bos_token_id"],
        "eos_token_id": ends if len(ends) > 1 else (ends or [None])[0],
        "pad_token_id": tokens["padding_token_id"],
    }


def _token(header: Header, name: str, vocabulary: int) -> int | None:
    """The id of a special token."""
    index = header.values.get(TOKENS + name)
    if index is None or (isinstance(index, int) and 0 <= index < vocabulary):
        return index
    raise broken(header.path, f"key '{TOKENS}{name}' is {index} of {vocabulary:,} tokens")


def _rope(keys: Keys, family: Family, sizes: Mapping[str, int]) -> dict[str, Any]:
    rotated = keys.size("rope.dimension_count", sizes["head"])
    rope = rope_parameters(keys, rotated=rotated, context=sizes["context"])
    if rotated != sizes["head"]:
        rope["partial_rotary_factor"] = rotated / sizes["head"]
    if family.model_type != "gemma3_text":
        return rope
    # sliding layers turn by a base of their own and are never scaled
    local = {"rope_type": "default", "rope_theta": float(keys.number("rope.freq_base_swa", 10000.0))}
    return {"full_attention": rope, "sliding_attention": local}


def _check_scale(keys: Keys, sizes: Mapping[str, int]) -> None:
    """Refuse an attention scale that the config cannot hold; Gemma 2 and 3 and Granite have a field for theirs."""
    scale = keys.optional("attention.scale")
    if scale and keys.architecture not in ("gemma2", "gemma3", "granite") and not math.isclose(scale, sizes["head"] ** -0.5, rel_tol=1e-6):
        raise keys.refused(f"{keys.architecture}.attention.scale", scale)
