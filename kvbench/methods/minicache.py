"""MiniCache: neighbouring layers of the upper half share directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.reckon import Prompt
from kvbench.methods.method import Method, param
from kvbench.spec.budgets import Dial, Range, Settings

if TYPE_CHECKING:
    from kvbench.caches.layer import LayerCache, LayerContext
    from kvbench.models.loading import Shape

DUST = 1e-9
"""Keeps 0.3 · 10 from becoming layer 2: products of decimal fractions fall a hair short."""


@dataclass(frozen=True)
class MiniCache(Method):
    """Merges adjacent layers from ``start`` upwards in pairs: one direction, two magnitudes (Liu et al., arXiv 2405.14366, §4).

    Directions by spherical interpolation (Eq. 3); a token whose angular distance between the two layers is
    within ``gamma`` of the range of distances below the largest stays unmerged in both. Keys and values are
    merged apart, each over the prompt of its own row. A last layer without a partner stays dense, and at
    least the last two layers are merged; a byte budget merges as few layers as meet it. Only the prompt is
    merged: the paper merges fresh tokens too, which makes a layer's cache depend on the layer above it; they
    stay dense here.
    """

    name: ClassVar[str] = "minicache"
    title: ClassVar[str] = "MiniCache"
    family: ClassVar[str] = "across layers"
    paper: ClassVar[str] = "MiniCache: KV Cache Compression in Depth Dimension for Large Language Models, arXiv 2405.14366"
    protocols: ClassVar[tuple[str, ...]] = ("prefill",)
    dial: ClassVar[Dial | None] = Settings(
        tuple({"start": tenths / 10} for tenths in range(9, -1, -1)), Range("gamma", most=1.0, least=0.0)
    )
    start: float = param(0.5, "first merged layer, as a fraction of the depth, [0, 1)", within="[0, 1)")
    gamma: float = param(
        0.05, "share of the range of angular distances, from the largest down, whose tokens stay unmerged, [0, 1]", within="[0, 1]"
    )
    t: float = param(0.6, "where the shared direction lies between the lower layer's (0) and the upper's (1)", within="[0, 1]")
    per_head: bool = param(False, "merge each KV head of a token by itself; otherwise all heads as one vector")

    def check(self, shape: Shape) -> None:
        if shape.layers < 2:
            raise ValueError("the model has one layer, and layers are merged in pairs; it must have 2 or more")

    def pairs(self, layers: int) -> list[tuple[int, int]]:
        """(lower, upper) of the layers that are merged."""
        first = min(int(self.start * layers + DUST), layers - 2)
        return [(lower, lower + 1) for lower in range(first, layers - 1, 2)]

    def stored(self, prompt: Prompt) -> int | None:
        """How many tokens of a pair stay unmerged follows from the text."""
        return None

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.merged import MergedLayer

        return MergedLayer(context, t=self.t, gamma=self.gamma, per_head=self.per_head)

    def join(self, layers: Sequence[LayerCache]) -> None:
        from kvbench.caches.merged import MergedLayer

        for lower, upper in self.pairs(len(layers)):
            below, above = layers[lower], layers[upper]
            if isinstance(below, MergedLayer) and isinstance(above, MergedLayer):
                above.pair_with(below)
