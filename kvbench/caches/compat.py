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


def _padding_only(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> Tensor | None:
    """Hand the two-dimensional padding mask through: kvbench's attention owns causality itself."""
    return attention_mask


def register(function: Callable[..., Any]) -> None:
    """Make ``function`` selectable as ``attn_implementation="kvbench"``."""
    AttentionInterface.register(ATTENTION, function)
    AttentionMaskInterface.register(ATTENTION, _padding_only)
