"""A Llama-shaped GGUF file as a plain safetensors folder in float32.

The file is read once and by the format's own library: the result is the same bytes whichever version of transformers is
installed (some give a byte-pair GGUF another family's tokenizer, with a BOS that the file itself switches off), and it
takes a fraction of the time of loading through ``from_pretrained``. A test holds it equal to what transformers reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.errors import ModelError

if TYPE_CHECKING:
    import numpy as np

CONTROL = 3  # tokenizer.ggml.token_type of tokens such as <|im_end|>, matched whole and never produced by merges
_TABLES = "tokenizer.ggml."
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
"""Special tokens: transformers' name and the header's entry that holds the id."""

Progress = Callable[[int, int], None]


def convert(gguf: Path, into: Path, progress: Progress = lambda done, total: None) -> None:
    """Write weights, config and tokenizer of ``gguf`` into the new folder ``into``; ``progress`` counts tensors.

    Raises:
        ModelError: the file is broken, or of a family or tokenizer that is not understood.
    """
    from gguf import GGUFReader
    from safetensors.numpy import save_file

    try:
        reader = GGUFReader(gguf)
        header = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, KeyError, IndexError) as error:
        raise ModelError(f"'{gguf.name}' is no GGUF file, or a broken one: {error}", hint="fetch the file again") from error
    if header.get("general.architecture") != "llama":
        raise ModelError(f"'{gguf.name}' holds a {header.get('general.architecture')} model and not a llama one")
    into.mkdir(parents=True, exist_ok=True)
    save_file(_weights(reader.tensors, header, progress), into / "model.safetensors", metadata={"format": "pt"})
    write_config(header, tied=all(t.name != "output.weight" for t in reader.tensors), into=into)
    write_tokenizer(header, into)


def _weights(tensors: Any, header: Mapping[str, Any], progress: Progress) -> dict[str, np.ndarray[Any, Any]]:
    """transformers' names → float32 arrays."""
    from gguf.quants import dequantize

    weights: dict[str, np.ndarray[Any, Any]] = {}
    for done, tensor in enumerate(tensors, 1):
        name = _name_of(tensor.name)
        weights[name] = _halves(dequantize(tensor.data, tensor.tensor_type), _heads(tensor.name, header)).astype("float32", copy=False)
        progress(done, len(tensors))
    return dict(sorted(weights.items()))


def _name_of(name: str) -> str:
    block = _BLOCK.fullmatch(name)
    if block and block[2] in _INSIDE:
        return f"model.layers.{block[1]}.{_INSIDE[block[2]]}.weight"
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    raise ModelError(f"the GGUF file holds an unknown tensor '{name}'")


def _heads(name: str, header: Mapping[str, Any]) -> int:
    """Heads of a projection that RoPE follows; 0 for any other tensor."""
    kind = name.split(".")[-2]
    key = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}.get(kind)
    return int(header[key]) if key else 0


def _halves(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo llama.cpp's row order: it interleaves the two halves of each head that RoPE turns into each other."""
    import numpy as np

    if not heads:
        return weight
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])  # [H, D/2, 2, hidden]
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def write_config(header: Mapping[str, Any], *, tied: bool, into: Path) -> None:
    """Save the config that a llama GGUF's header describes."""
    from transformers import AutoConfig

    tokens = {name.replace("token", "token_id"): header.get(_TABLES + key) for name, key in _NAMED.items() if name != "unk_token"}
    heads = header["llama.attention.head_count"]
    AutoConfig.for_model(
        "llama",
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        hidden_size=header["llama.embedding_length"],
        intermediate_size=header["llama.feed_forward_length"],
        num_hidden_layers=header["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=header["llama.attention.head_count_kv"],
        head_dim=header.get("llama.rope.dimension_count", header["llama.embedding_length"] // heads),
        max_position_embeddings=header["llama.context_length"],
        rms_norm_eps=header["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=header.get("llama.rope.freq_base", 10000.0),
        vocab_size=len(header[_TABLES + "tokens"]),
        tie_word_embeddings=tied,
        **tokens,
    ).save_pretrained(into)


def write_tokenizer(header: Mapping[str, Any], into: Path) -> None:
    """Save the byte-level BPE tokenizer that a GGUF's header describes.

    Raises:
        ModelError: another kind of tokenizer or of word splitting.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    kind = (header.get(_TABLES + "model"), header.get(_TABLES + "pre"))
    if kind != ("gpt2", "smollm") or header.get(_TABLES + "add_bos_token"):
        raise ModelError(f"this GGUF file's tokenizer ({kind[0]}, {kind[1]}) cannot be converted", hint="use a safetensors checkpoint")
    tokens: list[str] = header[_TABLES + "tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in header[_TABLES + "merges"]]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # "smollm" splits digits one by one, then words as GPT-2 does
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, header[_TABLES + "token_type"], strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        chat_template=header.get("tokenizer.chat_template"),
        **{name: tokens[header[_TABLES + key]] for name, key in _NAMED.items() if _TABLES + key in header},
    ).save_pretrained(into)
