"""A GGUF model as a plain safetensors folder: the same files whichever version of transformers converts.

Weights go through transformers' own GGUF reader. The tokenizer does not: some versions give a byte-pair GGUF another
family's tokenizer, with a BOS that the file itself switches off; here it is rebuilt from the file's own tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvbench.errors import ModelError

CONTROL = 3  # tokenizer.ggml.token_type of tokens such as <|im_end|>, matched whole and never produced by merges
_TABLES = "tokenizer.ggml."


def convert(gguf: Path, into: Path) -> None:
    """Write the GGUF's weights in float32 as safetensors, with config and tokenizer, into a new folder.

    Raises:
        ModelError: the file's tokenizer is of a kind that is not understood.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**options, dtype=torch.float32)
    config = AutoConfig.from_pretrained(**options)  # the model's own now says "quantized with gguf", which these files are not
    config.architectures, config.dtype = [type(model).__name__], torch.float32
    config.save_pretrained(into)
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    weights = {name: tensor.contiguous() for name, tensor in sorted(model.state_dict().items()) if name not in tied}
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(_fields(gguf), into)


def _fields(gguf: Path) -> dict[str, Any]:
    """The tokenizer's entries in the file's header."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    return {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}


def write_tokenizer(fields: Mapping[str, Any], into: Path) -> None:
    """Save a byte-level BPE tokenizer from a GGUF header's entries.

    Raises:
        ModelError: another kind of tokenizer or of word splitting.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    kind = (fields.get(_TABLES + "model"), fields.get(_TABLES + "pre"))
    if kind != ("gpt2", "smollm") or fields.get(_TABLES + "add_bos_token"):
        raise ModelError(f"this GGUF file's tokenizer ({kind[0]}, {kind[1]}) cannot be converted", hint="use a safetensors checkpoint")
    tokens: list[str] = fields[_TABLES + "tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in fields[_TABLES + "merges"]]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # "smollm" splits digits one by one, then words as GPT-2 does
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, fields[_TABLES + "token_type"], strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        chat_template=fields.get("tokenizer.chat_template"),
        **{name: tokens[fields[_TABLES + key]] for name, key in _NAMED.items() if _TABLES + key in fields},
    ).save_pretrained(into)


_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
