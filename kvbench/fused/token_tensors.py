"""Which tensors of a layer's cache are its stored tokens, for the layers that the kernels can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from kvbench.caches.composed import ComposedLayer
from kvbench.caches.dense import DenseLayer
from kvbench.caches.evicted import EvictedLayer
from kvbench.caches.folding import can_fold
from kvbench.caches.guarded import GuardedLayer
from kvbench.caches.layer import LayerCache
from kvbench.caches.lowrank import ValueLowRankLayer
from kvbench.caches.quantised import QuantisedLayer, Side
from kvbench.caches.ragged import RaggedLayer, SelectedHeads
from kvbench.caches.stores import DenseStore, QuantStore
from kvbench.caches.threshold import SurrogateHeads
from kvbench.fused.layout import TILE
from kvbench.fused.storage import Held, NotFused

__all__ = ["NotFused", "Source", "Windowed", "check", "check_together", "is_ragged", "residual", "sources_of", "windowed"]


@dataclass(frozen=True)
class Source:
    """Tokens that become one region. grows: New tokens are stored with them."""

    keys: Held
    values: Held
    grows: bool = True


def is_ragged(layer: LayerCache) -> TypeGuard[RaggedLayer]:
    """Whether every row and KV head has a layer of its own."""
    return isinstance(layer, RaggedLayer)


def sources_of(layer: LayerCache) -> list[Source]:
    """The stored tokens of ``layer``, one source a region; exactly one of them grows.

    Raises:
        NotFused: no kernel reads what it stores.
    """
    return sources_of(layer.inner) if isinstance(layer, ComposedLayer) else _own(layer)


def check(layer: LayerCache) -> None:
    """See whether a layer can be taken over.

    Raises:
        NotFused: it cannot, and why.
    """
    if layer.rows:
        raise NotFused("rows of different lengths")
    if layer.context.protocol == "streaming":
        raise NotFused("tokens are compressed as they come")
    if layer.context.head_dim & (layer.context.head_dim - 1) or layer.context.head_dim < 16:
        raise NotFused(f"a head size of {layer.context.head_dim}")
    if isinstance(layer, RaggedLayer):
        if not isinstance(layer, SelectedHeads) or isinstance(layer, SurrogateHeads):
            raise NotFused(f"no kernel reads a {type(layer).__name__}")
        for cell in (cell for row in layer.cells for cell in row):
            if quantised_of(cell) is not None:
                raise NotFused("heads of different lengths with a dense residual each")
            sources_of(cell)
    elif windowed(layer) is None:
        sources_of(layer)


@dataclass(frozen=True)
class Windowed:
    """Tokens of a layer whose newest become codes later.

    Attributes:
        coded: Keys and values that are codes. dense: Those that are not, the newest of each.
        size: Residual, tokens. newest: How many values are dense.
    """

    coded: tuple[Held, Held]
    dense: tuple[Held, Held]
    size: int
    newest: int


def quantised_of(layer: LayerCache) -> QuantisedLayer | None:
    """The layer of codes behind a dense residual that stores the tokens of ``layer``, if one does."""
    if isinstance(layer, ComposedLayer):
        return quantised_of(layer.inner)
    is_one = type(layer) is QuantisedLayer and any(s.old is not None and s.new is not None for s in (layer.keys_side, layer.values_side))
    return layer if is_one and isinstance(layer, QuantisedLayer) else None


def residual(layer: LayerCache) -> int:
    """Tokens of the dense residual, 0 without one."""
    inner = quantised_of(layer)
    return 0 if inner is None else inner.values_side.residual


def check_together(layers: Sequence[LayerCache]) -> None:
    """See whether the layers of one cache flush at the same tokens: one graph does it for all.

    Raises:
        NotFused: they do not.
    """
    inner = [quantised_of(layer) for layer in layers]
    phases = {None if one is None else (one.values_side.residual, one.length % one.values_side.residual) for one in inner}
    if len(phases) > 1:
        raise NotFused("layers of different lengths with a dense residual each")


def windowed(layer: LayerCache) -> Windowed | None:
    """What a layer with a dense residual stores; ``None`` where there is none.

    Raises:
        NotFused: it has one that the kernels do not know.
    """
    inner = quantised_of(layer)
    if inner is None:
        return None
    keys, values = inner.keys_side, inner.values_side
    if keys.old is None or keys.new is None or values.old is None or values.new is None:
        raise NotFused("a dense residual of one side alone")
    if keys.old.scheme.axis != "channel" or not values.sliding or values.old.scheme.axis != "token":
        raise NotFused("a dense residual where keys are not per channel and values per token")
    size = values.residual
    if size % TILE or size & (size - 1):
        raise NotFused(f"a dense residual of {size} tokens")
    dense = Held.of(keys.new, inner.context.head_dim, values.new.buffer.room), Held.of(values.new)
    coded = tuple(Held.of(s, inner.context.head_dim, values.new.buffer.room) for s in (keys.old, values.old))
    return Windowed((coded[0], coded[1]), dense, size, values.new.length)


def _own(layer: LayerCache) -> list[Source]:
    if type(layer) is DenseLayer or isinstance(layer, EvictedLayer):
        if isinstance(layer, EvictedLayer) and layer.every is not None:
            raise NotFused("tokens are evicted while decoding")
        return [Source(Held.of(layer.keys_store), Held.of(layer.values_store))]
    if type(layer) is QuantisedLayer:
        return [Source(_side(layer.keys_side), _side(layer.values_side))]
    if type(layer) is GuardedLayer:
        return _guarded(layer)
    if type(layer) is ValueLowRankLayer:
        return [_low_rank(layer)]
    raise NotFused(f"no kernel reads a {type(layer).__name__}")


def _side(side: Side) -> Held:
    if side.old is not None and side.new is not None:
        raise NotFused("the newest tokens are dense and quantised later")
    store = side.old or side.new
    if store is None:
        raise NotFused("nothing is stored")
    return Held.of(store)


def _guarded(layer: GuardedLayer) -> list[Source]:
    """Codes, and the dense tokens apart; what comes is dense."""
    from dataclasses import replace

    import torch

    sources = []
    if layer.coded[0].length:
        sources.append(Source(Held.of(layer.coded[0]), Held.of(layer.coded[1]), grows=False))
    dense: list[Held] = []
    for side in (0, 1):
        held = [Held.of(stores[side]) for stores in (layer.guarded, layer.fresh) if stores[side].length]
        if held:
            dense.append(replace(held[0], numbers=torch.cat([h.numbers for h in held], 2)))
        else:
            dense.append(
                Held.nothing(replace(Held.of(layer.coded[side]).form, bits=16), layer.context.dtype, layer.coded[side].codes.view())
            )
    return [*sources, Source(dense[0], dense[1])]


def _low_rank(layer: ValueLowRankLayer) -> Source:
    if not can_fold(layer):
        raise NotFused("the value basis cannot be folded into this model's projections")
    projection = layer.values_store.projection
    if projection.heads(layer.context.kv_heads) != 1:
        raise NotFused("heads share a basis")
    store = layer.values_store.store.inner
    if not isinstance(store, (DenseStore, QuantStore)):
        raise NotFused("coefficients of an unknown format")
    return Source(Held.of(layer.keys_store), Held.of(store))
