"""All differences between transformers 5.2 and 5.23 that kvbench meets, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

ATTENTION = "kvbench"
"""Name of kvbench's attention function; holds neither ``sdpa`` nor ``flex_attention``, which are special-cased."""

__all__ = ["ATTENTION", "AnyLayer", "Cache", "query_length", "register"]


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


def _padding_only(*_: Any, attention_mask: Tensor | None = None, kv_length: int = 0, kv_offset: int = 0, **__: Any) -> Tensor | None:
    """The two-dimensional padding mask, or ``None`` where nothing is padded: kvbench's attention owns causality itself."""
    if attention_mask is None:
        return None
    covers = attention_mask.shape[-1] == kv_length + kv_offset  # not so in a static cache, whose empty room must be told apart
    return None if covers and bool(attention_mask.all()) else attention_mask


def register(function: Callable[..., Any]) -> None:
    """Make ``function`` selectable as ``attn_implementation="kvbench"``."""
    AttentionInterface.register(ATTENTION, function)
    AttentionMaskInterface.register(ATTENTION, _padding_only)
