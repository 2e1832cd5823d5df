"""Keys of a GGUF header, each used or refused by name: whatever nobody asked for is refused in the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kvbench.errors import ModelError, UnsupportedModel
from kvbench.models.gguf.header import Header, Span, broken

WITHOUT_EFFECT = ("general.", "quantize.", "split.", "tokenizer.")
"""Where a file came from and how it was made, and what the tokenizer reads (and refuses) by itself."""
UNUSED = ("rope.scaling.finetuned", "pooling_type", "tensor_data_layout")
"""Keys of an architecture that change no logit: notes, and what only embeddings are made with."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.sliding_window": (0,),
    "attention.temperature_scale": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_gating_func": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.alpha": (0.0, 1.0),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "router_logit_softcapping": (0.0,),
    "use_parallel_residual": (False,),
}
"""Keys that mean nothing at these values (llama.cpp's defaults) and are refused at any other, where no family reads them."""


class Keys:
    """Reads the keys of one architecture and remembers which were asked for."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.name = header.path.name
        self.architecture = self._architecture()
        self._asked: set[str] = set()

    def get(self, suffix: str) -> Any:
        """The value, or ``None``; an array of one number that repeats for every layer is that number."""
        self._asked.add(suffix)
        key = f"{self.architecture}.{suffix}"
        value = self.header.values.get(key)
        if not isinstance(value, Span):
            return value
        items = set(self.header.array(key))
        if len(items) != 1:
            raise UnsupportedModel(f"'{self.name}' cannot be benchmarked: key {key!r} differs from layer to layer")
        return items.pop()

    def items(self, suffix: str) -> list[Any]:
        """The items of an array, one for each layer; none where the key is absent or no array."""
        self._asked.add(suffix)
        key = f"{self.architecture}.{suffix}"
        return self.header.array(key) if isinstance(self.header.values.get(key), Span) else []

    def size(self, suffix: str, default: int | None = None) -> int:
        """A positive whole number.

        Raises:
            ModelError: it is missing, or something else.
        """
        value = self.number(suffix, default)
        if not isinstance(value, int) or value >= 1 << 31:
            raise broken(self.header.path, f"key '{self.architecture}.{suffix}' is {value!r}")
        return value

    def number(self, suffix: str, default: float | None = None) -> float:
        """A positive finite number.

        Raises:
            ModelError: it is missing, or something else.
        """
        value = self.get(suffix)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise broken(self.header.path, f"key '{self.architecture}.{suffix}' is {'missing' if value is None else repr(value)}")
        return value

    def optional(self, suffix: str) -> float | None:
        """A positive finite number, or ``None`` where it is absent or 0 (which switches it off)."""
        value = self.get(suffix)
        return None if value is None or value == 0 else self.number(suffix)

    def optional_size(self, suffix: str) -> int | None:
        """A positive whole number, or ``None`` where it is absent or 0."""
        return self.size(suffix) if self.get(suffix) else None

    def finish(self) -> None:
        """Refuse every key that was not asked for and could change a number.

        Raises:
            UnsupportedModel: names the first of them.
        """
        for key, value in self.header.values.items():
            suffix = key.removeprefix(f"{self.architecture}.")
            if key.startswith(WITHOUT_EFFECT) or (suffix != key and (suffix in self._asked or suffix in UNUSED)):
                continue
            if suffix == key or value not in NEUTRAL.get(suffix, ()):
                raise self.refused(key, "an array" if isinstance(value, Span) else value)

    def refused(self, key: str, value: Any) -> UnsupportedModel:
        """The error that refuses a key for its value."""
        text = f"'{self.name}' cannot be benchmarked: what its key {key!r} ({value}) does to the model is not understood"
        return UnsupportedModel(text, hint="use a safetensors checkpoint of the model")

    def _architecture(self) -> str:
        values = self.header.values
        name, kind = values.get("general.architecture"), values.get("general.type", "model")
        if not isinstance(name, str):
            raise broken(self.header.path, "key 'general.architecture' is missing")
        if kind != "model":
            raise ModelError(f"'{self.name}' holds no model but another thing (general.type {kind!r})", hint="use the model's own file")
        if values.get("split.count", 0) not in (0, 1):
            hint = "join them first: llama-gguf-split --merge FIRST.gguf WHOLE.gguf"
            raise ModelError(f"'{self.name}' is one of {values['split.count']} parts of a model", hint=hint)
        return name
