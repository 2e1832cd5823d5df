"""What a method defines of one layer: what is stored of the tokens, how it is read, and when it changes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from kvbench.caches.layer_context import LayerContext
from kvbench.caches.ledger import Part
from kvbench.caches.restored import Restored
from kvbench.caches.stores import Store
from kvbench.caches.tagged import TaggedLayer
from kvbench.caches.views import TokenView


class StoringLayer(TaggedLayer):
    """The storage of one layer; :class:`kvbench.caches.layer.LayerCache` brings tokens to it, and is what methods derive from.

    Args:
        context: Where the layer stands.
    """

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.is_initialized = True
        self.context, self.seen = context, 0
        self.scaling = context.head_dim**-0.5

    @abstractmethod
    def compress(self, prompt: TokenView) -> None:
        """Take over a prompt whose own attention is done. The view's tensors are shared: copy what is kept."""

    @abstractmethod
    def append(self, keys: Tensor, values: Tensor) -> None:
        """Store fresh tokens ``[B, Hkv, n, D]`` as the method stores them."""

    @abstractmethod
    def attend(self, q: Tensor) -> Tensor:
        """``[B, Hq, m, D]`` over what is stored; the last m stored tokens are the queries' own."""

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, Hkv, length, D]`` as attention reads them."""
        raise NotImplementedError(f"{type(self).__name__} does not read its tokens apart from attending to them")

    def places(self, prompt: TokenView) -> Tensor:
        """Positions ``[B, Hkv, length]`` of the prompt's tokens that ``compress`` keeps, in the order in which ``read`` gives them.

        Worked out from the prompt again where a method chooses; nothing is stored for it. By default every token, in order.
        """
        return prompt.positions

    def restored(self, prompt: TokenView, dtype: torch.dtype) -> Restored:
        """What attention reads of a ``prompt`` that was just compressed, token by token.

        Raises:
            NotImplementedError: what is read is not the tokens at ``places``.
        """
        keys, values = (x.to(prompt.keys.device) for x in self.read(dtype))
        places = self.places(prompt)
        if places.shape != keys.shape[:3]:
            raise NotImplementedError(f"{type(self).__name__} does not say which tokens it reads")
        return Restored.at(places, keys, values, prompt.seen)

    def settle(self) -> None:
        """Between two blocks: flush a full residual, evict down to the budget. Nothing by default."""

    def stable_for(self) -> int | None:
        """Tokens that may come before the stored part next changes; ``None`` is for ever."""
        return None

    def parts(self) -> Iterator[Part]:
        """Every tensor this layer stores."""
        for store in self.stores():
            yield from store.parts()

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens held now, in each KV head."""

    @property
    def goes_on(self) -> bool:
        """Whether later tokens of a prompt find all before them as they came, so that pieces give what the whole gives."""
        return False

    def artefacts(self) -> Iterator[Part]:
        """Weights-side tensors this layer reads."""
        return iter(())

    def stores(self) -> Iterator[Store]:
        """The stores this layer is made of; ``parts`` and ``reorder_cache`` are read off them."""
        return iter(())
