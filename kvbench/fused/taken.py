"""What one layer stores, taken over into the kernels' layout; the kernels and plain PyTorch read the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kvbench.caches.layer import LayerCache
from kvbench.fused.storage import Region, region_of
from kvbench.fused.token_tensors import Windowed, is_ragged, sources_of, windowed
from kvbench.fused.window import Window, window_of


@dataclass
class Taken:
    """One layer's tokens, and the heads that read them.

    Attributes:
        heads, kv_heads, head_dim: Query heads, KV heads, channels of a key.
        scaling: The model's softmax scale.
        counter: int32 ``[1]``, tokens appended so far; shared by all layers, and advanced by who decodes.
        regions: Where tokens lie; one of them grows.
        window: The newest tokens, where they become codes later.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    counter: Tensor
    regions: Sequence[Region]
    window: Window | None = None

    @property
    def growing(self) -> Region:
        """Where fresh tokens go."""
        return next(region for region in self.regions if region.grows)

    @property
    def value_dim(self) -> int:
        """Channels of a value: the head size, or the rank where values are coefficients."""
        return self.regions[0].values.form.width

    def read_bytes(self, appended: int) -> int:
        """Bytes that a query reads when ``appended`` tokens were."""
        regions = sum(region.read_bytes(appended) for region in self.regions)
        return regions + (0 if self.window is None else self.window.read_bytes(appended))


def taken_of(layer: LayerCache, counter: Tensor, reserve: int) -> Taken:
    """A layer's storage in the kernels' layout, with room for ``reserve`` tokens more.

    Raises:
        NotFused: it has no kernel.
    """
    behind = windowed(layer)
    regions, window = (_regions(layer, reserve), None) if behind is None else _behind_window(layer, behind, reserve)
    context = layer.context
    return Taken(context.heads, context.kv_heads, context.head_dim, layer.scaling, counter, regions, window)


def _regions(layer: LayerCache, reserve: int) -> list[Region]:
    """What a layer stores, region by region; the cells of a ragged one lie in the same."""
    cells = [sources_of(cell) for row in layer.cells for cell in row] if is_ragged(layer) else [sources_of(layer)]
    pairs = layer.batch * layer.context.kv_heads
    return [
        region_of([(cell[i].keys, cell[i].values) for cell in cells], pairs, reserve, grows=source.grows)
        for i, source in enumerate(cells[0])
    ]


def _behind_window(layer: LayerCache, behind: Windowed, reserve: int) -> tuple[list[Region], Window]:
    """What a layer with a dense residual stores: codes, and the window of its newest tokens."""
    pairs = layer.batch * layer.context.kv_heads
    coded = region_of([behind.coded], pairs, reserve, grows=True, lag=behind.newest)
    window = window_of(*behind.dense, behind.size, coded)
    coded.lag = behind.size
    return [coded], window
