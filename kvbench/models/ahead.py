"""What a model's files say of it before it is loaded: its config, and what loading it would refuse.

A plan is made in a second or two, which importing transformers alone would take. So a checkpoint's ``config.json`` is read as it
stands where its family is known to need no more than it says; of any other, transformers is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kvbench.errors import ModelError
from kvbench.models.checkpoint import CONFIG, check_whole, read_json, weight_files
from kvbench.models.gguf import gguf_config
from kvbench.models.shape import Config, check_supported
from kvbench.models.sources import Source, here
from kvbench.spec import ModelSpec

COMMON = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size", "max_position_embeddings")
GROUPED = ("num_key_value_heads",)
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "apertus": (),
    "arcee": (),
    "bitnet": GROUPED,
    "gemma": (*GROUPED, "head_dim"),
    "gpt_neox": (),
    "granite": (),
    "granitemoe": (),
    "llama": (),
    "mistral": (*GROUPED, "sliding_window"),
    "mixtral": (*GROUPED, "sliding_window"),
    "olmo": (),
    "olmo2": (),
    "olmoe": (),
    "persimmon": (),
    "phi": (),
    "phi3": ("sliding_window",),
    "phimoe": (*GROUPED, "sliding_window"),
    "qwen2": GROUPED,
    "qwen2_moe": GROUPED,
    "qwen3": (*GROUPED, "head_dim"),
    "qwen3_moe": (*GROUPED, "head_dim"),
    "seed_oss": (*GROUPED, "head_dim"),
    "stablelm": GROUPED,
    "starcoder2": (*GROUPED, "sliding_window"),
}
"""Families whose code has the attention that kvbench replaces → keys without which transformers would fill in a number of the family's
own; what else is missing means what it means to :mod:`kvbench.models.shape`."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")


def config_ahead(spec: ModelSpec) -> Config | None:
    """The config of what ``spec`` names; ``None`` of a model that is not on this machine.

    Raises:
        ModelError: there is no such folder or file, it holds no weights or no tokenizer, or it cannot be read.
        UnsupportedModel: its attention would be measured wrongly.
    """
    if spec.config is not None:
        return spec.config
    source = here(spec)
    if source is None:
        return None
    if source.gguf is not None:
        return gguf_config(source.gguf)
    if source.revision is None and not spec.random_weights:  # of a snapshot, only the text may be here yet
        for file in weight_files(source.folder):
            check_whole(file)
        _check_tokenizer(spec, source.folder)
    return _config_of(source, spec)


def _config_of(source: Source, spec: ModelSpec) -> Config:
    found = read_json(source.folder / CONFIG)
    if is_told(found):
        return found
    if "num_hidden_layers" in found:
        check_supported(found)
    from kvbench.models.loading import checked_config

    return checked_config(spec, source)


def is_told(config: Config) -> bool:
    """Whether a plain config says all that a plan needs, and its family's code is known."""
    needed = FAMILIES.get(str(config.get("model_type")))
    return needed is not None and "auto_map" not in config and all(key in config for key in (*COMMON, *needed))


def _check_tokenizer(spec: ModelSpec, folder: Path) -> None:
    settings = folder / "tokenizer_config.json"
    if not any(next(folder.glob(pattern), None) for pattern in TOKENIZERS):
        raise ModelError(f"'{folder}' holds no tokenizer", hint="save the tokenizer beside the weights (AutoTokenizer … save_pretrained)")
    if settings.is_file() and "auto_map" in read_json(settings):
        from kvbench.models.loading import load_tokenizer

        load_tokenizer(spec)  # whether it can do without its own code is for transformers to say
