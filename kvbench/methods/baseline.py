"""The model's own cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.reckon import Prompt, dense
from kvbench.methods.method import Method

if TYPE_CHECKING:
    from kvbench.caches.layer import LayerCache, LayerContext


@dataclass(frozen=True)
class Baseline(Method):
    """Every key and value, dense: what all others are compared with."""

    name: ClassVar[str] = "baseline"
    title: ClassVar[str] = "Baseline (full cache)"
    family: ClassVar[str] = "reference"
    paper: ClassVar[str] = "the model itself"

    def stored(self, prompt: Prompt) -> int:
        return 2 * dense(prompt, prompt.tokens)

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.dense import DenseLayer

        return DenseLayer(context)
