"""AsymKV: neighbours share a key, their values are summed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.needs import Needs
from kvbench.caches.reckon import INT32, Prompt, dense, kept_count, rows
from kvbench.methods.method import Method, param
from kvbench.spec.budgets import Dial, Range

if TYPE_CHECKING:
    from kvbench.caches.layer import LayerCache, LayerContext


@dataclass(frozen=True)
class AsymKV(Method):
    """Adjacent tokens merged: one key, the sum of the values, a count (Cui and Xu, arXiv 2506.05410).

    The two neighbours of the lowest sum of attention are merged, again and again, down to the budget. The merged key is
    ``(H_m + H_m+1)⁻¹ (H_m k_m + H_m+1 k_m+1)`` with H the diagonal of the Fisher information, taken before RoPE; values
    and counts are summed, and the softmax counts an entry as often as it has tokens, so that only keys lose anything.
    ``weights=attention`` and ``cardinality`` weigh keys as in the paper's ablation.

    Where this differs: the paper squares the gradient of the model's loss, by backpropagation through all layers above; a
    cache sees no loss, so the gradient at the layer's attention output is taken as white noise, which gives the Fisher
    diagonal a closed form. The paper merges between chunks of 512 tokens of the prompt, by the attention of each to what is
    cached; here the prompt is merged once, by the queries of its newest ``window`` tokens, which stay whole. The authors' code
    also divides attention by an exponential of the position and caps counts at 5: neither is done here. Its 32 sinks are kept.
    """

    name: ClassVar[str] = "asymkv"
    title: ClassVar[str] = "AsymKV"
    family: ClassVar[str] = "K/V asymmetry"
    paper: ClassVar[str] = "Homogeneous Keys, Heterogeneous Values: Exploiting Local KV Cache Asymmetry, arXiv 2506.05410"
    protocols: ClassVar[tuple[str, ...]] = ("prefill",)
    dial: ClassVar[Dial | None] = Range("compression_ratio", most=0.0, least=1.0 - 1e-6)
    compression_ratio: float = param(0.5, "fraction of the prompt's entries removed by merging, [0, 1)", within="[0, 1)")
    window: int = param(64, "newest tokens, kept whole, whose queries are looked at", least=1)
    n_sink: int = param(32, "first tokens, kept whole", least=0)
    weights: str = param(
        "fisher", "what keys are weighed by: fisher, attention or cardinality", among=("fisher", "attention", "cardinality")
    )

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window)

    def stored(self, prompt: Prompt) -> int:
        kept = kept_count(prompt.tokens, self.compression_ratio)
        return 2 * dense(prompt, kept) + rows(1, kept, INT32)

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.homogeneous import HomogeneousLayer

        return HomogeneousLayer(context, self.compression_ratio, self.window, self.n_sink, self.weights)
