"""All differences between transformers 5.2 and 5.23 that kvbench meets, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

ATTENTION = "kvbench"
"""Name of kvbench's attention function; holds neither ``sdpa`` nor ``flex_attention``, which are special-cased."""

__all__ = ["ATTENTION", "AnyLayer", "Cache", "OwnLength", "prompt_in_pieces", "query_length", "register"]


class AnyLayer(CacheLayerMixin):  # type: ignore[misc]
    """A cache layer that meets both protocols: the abstract methods changed name and signature between versions."""

    is_compileable = False
    is_sliding = False
    is_croppable = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: stores allocate when they first hold something."""

    def get_max_cache_shape(self) -> int:
        return -1

    def get_max_length(self) -> int:
        return -1


def query_length(argument: int | Tensor) -> int:
    """Number of queries from what ``get_mask_sizes`` is given: a count (new) or their positions (old)."""
    return argument if isinstance(argument, int) else int(argument.shape[0])


class OwnLength(int):
    """Number of keys, from a layer of kvbench's: it sees to padding itself, and nothing need be asked of the device."""


def prompt_in_pieces() -> int | None:
    """Tokens of the whole prompt that ``generate`` is reading with ``prefill_chunk_size`` right now; ``None`` outside of that.

    No argument of a forward says that a prompt goes on, and its last piece may be one token, as a decoded one is. Both
    versions read a prompt in ``GenerationMixin._prefill(input_ids, generation_config, ...)``.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_prefill" and frame.f_globals.get("__name__") == "transformers.generation.utils":
            ids, config = frame.f_locals.get("input_ids"), frame.f_locals.get("generation_config")
            return None if ids is None or getattr(config, "prefill_chunk_size", None) is None else int(ids.shape[-1])
        frame = frame.f_back
    return None


def _padding_only(*_: Any, attention_mask: Tensor | None = None, kv_length: int = 0, kv_offset: int = 0, **sizes: Any) -> Tensor | None:
    """The padding mask ``[B, tokens seen]``: kvbench's attention owns causality itself.

    For other caches it is ``None`` where nothing is padded, and always given where a static cache has room beyond the tokens seen.
    """
    if isinstance(kv_length, OwnLength):
        return attention_mask
    seen, device = _tokens_seen(**sizes)
    if kv_offset + kv_length > seen:
        return torch.ones(1, seen, dtype=torch.bool, device=device) if attention_mask is None else attention_mask[:, :seen]
    return None if attention_mask is None or bool(attention_mask.all()) else attention_mask


def _tokens_seen(*, q_length: int = 0, q_offset: int | Tensor = 0, cache_position: Tensor | None = None, **sizes: Any) -> tuple[int, Any]:
    """Tokens read with this forward's own, and the device they are on, from what a mask function is told (new) or was (old)."""
    if cache_position is not None:
        return int(cache_position[-1]) + 1, cache_position.device
    return int(q_offset) + q_length, sizes.get("device")


def register(function: Callable[..., Any]) -> None:
    """Make ``function`` selectable as ``attn_implementation="kvbench"``."""
    AttentionInterface.register(ATTENTION, function)
    AttentionMaskInterface.register(ATTENTION, _padding_only)
