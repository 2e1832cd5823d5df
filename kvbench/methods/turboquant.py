"""TurboQuant: a random rotation, then the best scalar codebook for every coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.reckon import Prompt, dense, rows
from kvbench.methods.method import Method, must_be, param
from kvbench.spec.budgets import Dial, Range, widest_codes

if TYPE_CHECKING:
    from kvbench.caches.layer import LayerCache, LayerContext
    from kvbench.models.loading import Shape

WIDTHS = (1, 2, 3, 4)


@dataclass(frozen=True)
class TurboQuant(Method):
    """Norm and direction apart; the direction is rotated at random and each coordinate coded by the Lloyd–Max codebook
    of its known density (Zandieh et al., arXiv 2504.19874, Algorithm 1). With a residual step (Algorithm 2) one of the
    bits goes to the signs of a Gaussian sketch of what the codes leave, which makes inner products unbiased.

    ``bits`` sets both ``k_bits`` and ``v_bits``; 0 in either means ``bits``. Every token is quantised as it comes, the
    generated ones too (§4.3). Where the paper is silent: it does not say which algorithm keys and values take. By default
    keys, which are read through inner products, take Algorithm 2, and values, which are averaged, take Algorithm 1.
    Its 2.5 and 3.5 bits split off outlier channels, but it gives no rule to find them, so there is no such split here:
    ``k_bits=3,v_bits=2`` and ``k_bits=4,v_bits=3`` spend as many bits. Keys are coded as the cache holds them, RoPE
    applied. The rotation and the sketch are drawn once from the run's seed and shared by all layers and heads. ``recent``, which
    the paper has not, keeps the newest tokens dense (after the prompt up to 31 more, as they become codes 32 at a time).
    """

    name: ClassVar[str] = "turboquant"
    title: ClassVar[str] = "TurboQuant"
    family: ClassVar[str] = "quantisation"
    stores: ClassVar[bool] = True
    paper: ClassVar[str] = "TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate, arXiv 2504.19874"
    variants: ClassVar[tuple[str, ...]] = ("turboquant:bits=4", "turboquant:bits=4,k_residual=false", "turboquant:bits=3,k_residual=false")
    dial: ClassVar[Dial | None] = widest_codes(*WIDTHS[::-1], fine=Range("recent", most="context", least=0, whole=True))
    bits: int = param(4, "bits of keys and values per coordinate, 1 to 4")
    k_bits: int = param(0, "bits of keys; 0 is bits")
    v_bits: int = param(0, "bits of values; 0 is bits")
    k_residual: bool = param(True, "one of the keys' bits goes to the residual step")
    v_residual: bool = param(False, "one of the values' bits goes to the residual step")
    recent: int = param(0, "newest tokens kept dense; none in the paper", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, bits in (("bits", self.bits), ("k_bits", self.k_bits or self.bits), ("v_bits", self.v_bits or self.bits)):
            must_be(name, bits, WIDTHS)

    def check(self, shape: Shape) -> None:
        if shape.head_dim % 8:
            raise ValueError(
                f"k_bits={self.k_bits or self.bits}: codes of a head of {shape.head_dim} do not fill whole bytes; a multiple of 8 does"
            )

    def stored(self, prompt: Prompt) -> int:
        old = max(0, prompt.tokens - self.recent)
        sides = ((self.k_bits or self.bits, self.k_residual), (self.v_bits or self.bits, self.v_residual))
        codes = sum(self._codes(prompt, old, bits - residual, residual) for bits, residual in sides) if old else 0
        return codes + (2 * dense(prompt, prompt.tokens - old) if self.recent else 0)

    @staticmethod
    def _codes(prompt: Prompt, tokens: int, bits: int, residual: bool) -> int:
        """One side's: codes and norms, signs and norms of the residual step."""
        widths = [bits, *[1] * residual] if bits else [1] * residual
        norms = rows(prompt.kv_heads, tokens, prompt.itemsize)
        return sum(rows(prompt.kv_heads, tokens, prompt.head_dim * width // 8) + norms for width in widths)

    def layer(self, context: LayerContext) -> LayerCache:
        import torch

        from kvbench.caches.turbo import TurboLayer, draw_frame

        device = torch.device("cpu") if context.module is None else next(context.module.parameters()).device
        wide = torch.promote_types(context.dtype, torch.float32)
        frame = draw_frame(context.head_dim, self.k_residual or self.v_residual, context.seed, wide, device)
        keys, values = (self.k_bits or self.bits, self.k_residual), (self.v_bits or self.bits, self.v_residual)
        return TurboLayer(context, keys, values, self.recent, frame)
