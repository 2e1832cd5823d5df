"""A decode step of any other family: the model's own forward, with each layer's attention handed to its fused storage.

The cache given to the model holds nothing. Its layers pass on the queries, keys and values of the one fresh token, and
positions come from a tensor on the device, so that the same recording of the forward serves every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kvbench.caches.cache import Geometry, decoder_of, use_kvbench_attention
from kvbench.caches.compat import Cache
from kvbench.caches.fold import Fold
from kvbench.caches.layer import TaggedLayer

if TYPE_CHECKING:
    from kvbench.fused.layer import FusedLayer, FusedState


class PassingLayer(TaggedLayer):
    """Hands one token's queries, keys and values to a fused layer.

    Args:
        fused: What stores and reads them.
        seen: Tokens seen when recording began. A constant: nothing that is recorded may ask how many there are by now.
    """

    def __init__(self, fused: FusedLayer, seen: int) -> None:
        super().__init__()
        self.is_initialized = True
        self.fused, self.seen = fused, seen

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scaling: float, padding: Tensor | None = None) -> Tensor:
        """``q`` ``[B, Hq, 1, D]``, ``k``, ``v`` ``[B, Hkv, 1, D]``, RoPE applied → ``[B, Hq, 1, value_dim]``.

        ``scaling`` is the one under which the prompt was read; rows are of equal length, so that nothing is padded.
        """
        values = v if self.fused.fold is None else self.fused.fold.coefficients(v)
        sums = self.fused.attend(q[:, :, 0].contiguous(), k[:, :, 0].contiguous(), values[:, :, 0].contiguous())
        return sums.view(q.shape[0], q.shape[1], 1, -1)


class GenericStep:
    """``(token [B], count [1]) → logits [B, vocabulary]`` through ``model``'s own forward, storing each token in ``state``."""

    def __init__(self, model: Any, state: FusedState) -> None:
        use_kvbench_attention(model)
        self._decoder, self._head = decoder_of(model), model.get_output_embeddings()
        self._seen = state.seen
        self._cache = Cache(layers=[PassingLayer(layer, state.seen) for layer in state.layers])
        modules: Sequence[Any] = Geometry.of(model).modules
        folds = [(m, layer.fold) for m, layer in zip(modules, state.layers, strict=True) if layer.fold is not None]
        self._folds: list[tuple[Any, Fold]] = folds

    def __call__(self, token: Tensor, count: Tensor) -> Tensor:
        position = (count + self._seen)[None]  # [1, 1]
        with _swapped(self._folds):
            out = self._decoder(input_ids=token[:, None], past_key_values=self._cache, position_ids=position, use_cache=True)
        logits: Tensor = self._head(out.last_hidden_state[:, -1])
        return logits


@contextmanager
def _swapped(folds: Sequence[tuple[Any, Fold]]) -> Iterator[None]:
    """While open, modules have projections with a value basis folded in; a recording made here keeps to them."""
    own = [(module.v_proj, module.o_proj) for module, _ in folds]
    try:
        for module, fold in folds:
            module.v_proj, module.o_proj = fold.v_proj, fold.o_proj
        yield
    finally:
        for (module, _), (v_proj, o_proj) in zip(folds, own, strict=True):
            module.v_proj, module.o_proj = v_proj, o_proj
