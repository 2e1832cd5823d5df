"""AdaKV: heads share one budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.reckon import Prompt, held, over_heads
from kvbench.errors import UnknownName
from kvbench.methods.method import Eviction, Method, param
from kvbench.methods.registered import METHODS
from kvbench.spec import MethodSpec, ParamValue
from kvbench.spec.parameters import build

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import LayerCache, LayerContext, TokenView
    from kvbench.caches.needs import Needs


@dataclass(frozen=True)
class AdaKV(Eviction):
    """The best tokens of a layer over all its KV heads together (Feng et al., arXiv 2407.11550, Algorithm 1).

    The score is any eviction's, ``score_by``; parameters that are not AdaKV's own are that method's
    (``adakv:score_by=snapkv,window=16``), else its defaults hold. Each head keeps at least ``alpha_safeguard`` of its
    even share. What a head keeps is stored apart from the others', so that the layer's bytes are those of the
    tokens kept. ``decode=hold`` keeps each head's own number of tokens.
    """

    name: ClassVar[str] = "adakv"
    title: ClassVar[str] = "AdaKV"
    family: ClassVar[str] = "head-wise eviction"
    paper: ClassVar[str] = "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation, arXiv 2407.11550"
    takes_rest: ClassVar[str | None] = "options"
    protocols: ClassVar[tuple[str, ...]] = ("prefill",)
    score_by: str = param("snapkv", "the eviction whose score decides")
    alpha_safeguard: float = param(0.2, "least share of its even budget that a head keeps, [0, 1]", within="[0, 1]")
    options: tuple[tuple[str, ParamValue], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._scorer()

    def _scorer(self) -> Eviction:
        """The method that scores.

        Raises:
            ValueError: it does not exist or has no score of its own.
            UsageError: it has no such parameter, or refuses its value.
        """
        try:
            cls = METHODS.load(self.score_by)
        except UnknownName as error:
            raise ValueError(f"score_by={self.score_by}; it must be an eviction: {error.message}") from error
        if not issubclass(cls, Eviction) or cls is AdaKV:
            raise ValueError(f"score_by={self.score_by}; it must be an eviction, for example snapkv")
        scorer: Eviction = build(cls, MethodSpec(self.score_by, (*self.options, ("compression_ratio", self.compression_ratio))), "method")
        return scorer

    @property
    def needs(self) -> Needs:
        return self._scorer().needs

    def score(self, tokens: TokenView) -> Tensor:
        return self._scorer().score(tokens)

    def select(self, prompt: TokenView) -> tuple[Tensor, Tensor]:
        """Mask ``[B, Hkv, T]`` of the tokens kept, and the scores."""
        from kvbench.caches.checked import checked_count
        from kvbench.caches.evicted import scored
        from kvbench.caches.token_scores import best_over_heads

        tokens = prompt.keys.shape[2]
        budget = checked_count(self.kept(tokens, prompt.layer), tokens)
        scores = scored(self, prompt, budget)
        if not scores.is_floating_point():
            scores = scores.double()
        return best_over_heads(scores, budget, int(budget * self.alpha_safeguard)), scores

    def stored(self, prompt: Prompt) -> int | None:
        kept, every, one = self.kept(prompt.tokens, prompt), self.evict_every, prompt.one_head
        return sum(held(one, self.needs, kept, every) for _ in range(prompt.kv_heads))  # bytes of a token, whichever head has it

    def stored_over(self, prompt: Prompt, store: Method) -> int | None:
        """Heads differ in length by the text; known where that changes nothing: no residual, no groups along time."""
        kept, heads, one = self.kept(prompt.tokens, prompt), prompt.kv_heads, prompt.one_head
        least = int(kept * self.alpha_safeguard)
        even, most = [kept] * heads, [kept * heads - least * (heads - 1), *[least] * (heads - 1)]
        near = [kept + 1, kept - 1, *even[2:]] if heads > 1 and kept > least else even
        found = [[store.stored(one.of(tokens)) for tokens in way] for way in (even, near, most)]
        return over_heads([sum(b for b in way if b is not None) for way in found if None not in way])

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.dense import DenseLayer
        from kvbench.caches.ragged import HeldHead, SelectedHeads

        def cell(own: LayerContext) -> LayerCache:
            return DenseLayer(own) if self.evict_every is None else HeldHead(own, self)

        return SelectedHeads(context, self.needs, cell, self.select)

    def over(self, context: LayerContext, store: Method) -> LayerCache:
        from kvbench.caches.ragged import SelectedHeads

        return SelectedHeads(context, self.needs, store.layer, self.select)
