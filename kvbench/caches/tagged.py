"""What ``transformers`` asks of a cache layer, and how attention finds the layer that stores a forward's tokens: the fresh keys name it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kvbench.caches.compat import AnyLayer, OwnLength, query_length

TAG = "_kvbench_layer"
"""Attribute by which the fresh keys of a forward name the layer that stores them."""


def named_layer(keys: Tensor) -> Any | None:
    """The layer that a forward's fresh keys name, or ``None``.

    The name is taken off: keys that a prompt keeps would else hold the layer that holds them, and a circle of tensors is
    freed only when Python next looks for circles, which may be hundreds of prompts later.
    """
    return vars(keys).pop(TAG, None)


class TaggedLayer(AnyLayer):
    """Hands a forward's fresh tokens to attention, tagged with the layer whose ``forward`` then stores them.

    Attributes:
        seen: Tokens that it has passed on.
        open: What has come of a prompt in pieces, until all of it has.
    """

    seen: int
    open: Any = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        setattr(key_states, TAG, self)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens seen, not kept: it sets the next RoPE position."""
        return self.seen

    def get_mask_sizes(self, query: int | Tensor) -> tuple[int, int]:
        return OwnLength(self.seen + query_length(query)), 0

    def reset(self) -> None:
        """Refused: what was compressed away cannot be had back.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a compressed cache cannot be reset; make a new one with kvbench.make_cache")

    def crop(self, *_: Any) -> None:
        """Refused, as ``reset`` is: assisted decoding would need tokens that are gone.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a compressed cache cannot be cropped")
