"""Eviction and quantisation together, the most important tokens dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.needs import Needs
from kvbench.caches.reckon import Place, Prompt, coded, dense, kept_count
from kvbench.methods.method import Method, check_window, must_divide, param
from kvbench.methods.quantiser import check_bits, check_packing, whole_or
from kvbench.spec.budgets import Dial, Range

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import LayerCache, LayerContext, TokenView
    from kvbench.models.loading import Shape


@dataclass(frozen=True)
class Hybrid(Method):
    """Keeps ``retain`` of the tokens; of those the ``guard`` most important dense and the rest quantised: a composition
    of an eviction and a mixed-precision store.

    Importance is the vote of an observation window (as SnapKV's); the window itself ranks first. With
    ``pyramid`` above 0, lower layers retain more and upper layers less, linearly, the mean staying the same.
    """

    name: ClassVar[str] = "hybrid"
    title: ClassVar[str] = "Hybrid"
    family: ClassVar[str] = "hybrid"
    paper: ClassVar[str] = "window voting (arXiv 2404.14469) with per-token quantisation and layer budgets (arXiv 2406.02069)"
    in_all: ClassVar[bool] = False
    dial: ClassVar[Dial | None] = Range("retain", most=1.0, least=1e-6)
    retain: float = param(0.32, "fraction of the prompt's tokens kept, (0, 1]", within="(0, 1]")
    k_bits: int = param(3, "bits of quantised keys: 2, 3, 4 or 8")
    v_bits: int = param(2, "bits of quantised values: 2, 3, 4 or 8")
    guard: float = param(0.60, "fraction of the kept tokens, by importance, that stays dense, [0, 1]", within="[0, 1]")
    group: int = param(32, "channels that share a scale; 0 is the whole head", least=0)
    pyramid: float = param(
        0.0, "slope of layer budgets: bottom layer (1 + pyramid)·retain, top (1 − pyramid)·retain, [0, 1)", within="[0, 1)"
    )
    window: int = param(32, "observation window, tokens; recent tokens kept dense while streaming")
    kernel: int = param(5, "pooling width of importance, tokens, odd")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(k_bits=self.k_bits, v_bits=self.v_bits)
        if (1 + self.pyramid) * self.retain > 1:
            raise ValueError(f"pyramid={self.pyramid} makes the bottom layer keep more than all; the largest is {1 / self.retain - 1:.3g}")
        check_window(self.window, self.kernel)

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window)

    def check(self, shape: Shape) -> None:
        must_divide("group", whole_or(self.group, shape.head_dim), shape.head_dim, "head size")
        check_packing(shape.head_dim, k_bits=self.k_bits, v_bits=self.v_bits)

    def score(self, tokens: TokenView) -> Tensor:
        """Importance ``[B, Hkv, T]``."""
        from kvbench.caches.token_scores import window_votes

        return window_votes(tokens, self.window, self.kernel)

    @property
    def in_order(self) -> bool:
        """Scores read no order but that of positions."""
        return False

    @property
    def evict_every(self) -> int | None:
        """The prompt is sorted once."""
        return None

    def kept(self, tokens: int, layer: Place) -> int:
        """How many of ``tokens`` are kept in each KV head of ``layer``."""
        return kept_count(tokens, 1.0 - self.retained(layer.index, layer.layers))

    def retained(self, layer: int, layers: int) -> float:
        """This layer's share of the tokens."""
        height = layer / (layers - 1) if layers > 1 else 0.5
        return self.retain * (1 + self.pyramid * (1 - 2 * height))

    def stored(self, prompt: Prompt) -> int:
        kept = self.kept(prompt.tokens, prompt)
        guarded = min(kept, round(kept * self.guard))
        group = whole_or(self.group, prompt.head_dim)
        codes = sum(coded(prompt, kept - guarded, bits, group, symmetric=False) for bits in (self.k_bits, self.v_bits))
        return (2 * dense(prompt, guarded) if guarded else 0) + (codes if kept > guarded else 0)

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.composed import ComposedLayer
        from kvbench.caches.guarded import GuardedLayer
        from kvbench.caches.packing import Scheme

        group = whole_or(self.group, context.head_dim)
        store = GuardedLayer(context, self.guard, Scheme(self.k_bits, group), Scheme(self.v_bits, group))
        return ComposedLayer(context, self, store, window=self.window, fold=2 * self.window)


@dataclass(frozen=True)
class Hybrid5x(Hybrid):
    """Retain 32 %, guard 60 % of it, keys in 3 bits and values in 2."""

    name: ClassVar[str] = "hybrid_5x"
    title: ClassVar[str] = "Hybrid 5x"
    in_all: ClassVar[bool] = True


@dataclass(frozen=True)
class Hybrid8x(Hybrid):
    """Retain 18 %, guard 50 % of it, 2 bits."""

    name: ClassVar[str] = "hybrid_8x"
    title: ClassVar[str] = "Hybrid 8x"
    in_all: ClassVar[bool] = True
    retain: float = 0.18
    k_bits: int = 2
    guard: float = 0.50


@dataclass(frozen=True)
class Hybrid12x(Hybrid):
    """Retain 12 %, guard 40 % of it, 2 bits in groups of 64."""

    name: ClassVar[str] = "hybrid_12x"
    title: ClassVar[str] = "Hybrid 12x"
    in_all: ClassVar[bool] = True
    retain: float = 0.12
    k_bits: int = 2
    guard: float = 0.40
    group: int = 64
