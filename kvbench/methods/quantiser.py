"""Shared by the methods that quantise tokens: bits, groups, axes and residuals, for keys and values apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.reckon import Prompt, coded, dense
from kvbench.methods.method import Method, must_be, must_divide, param
from kvbench.spec.budgets import Dial, Range, widest_codes

if TYPE_CHECKING:
    from kvbench.caches.layer import LayerCache, LayerContext
    from kvbench.caches.packing import Scheme
    from kvbench.models.loading import Shape

BITS = (2, 3, 4, 8)
DENSE = 16
"""Bits that stand for a side that is not quantised, in whatever format the cache has."""


def check_bits(*, dense: bool = False, **given: int) -> None:
    """Refuse a bit width that cannot be packed; ``dense`` allows 16.

    Raises:
        ValueError: names the parameter and the widths there are.
    """
    widths = (*BITS, DENSE) if dense else BITS
    for name, bits in given.items():
        must_be(name, bits, widths)


def check_packing(width: int, **given: int) -> None:
    """Refuse codes of one head that do not fill whole bytes.

    Raises:
        ValueError: names the parameter and the nearest width that does.
    """
    for name, bits in given.items():
        if width * bits % 8:
            near = min((b for b in BITS if width * b % 8 == 0), key=lambda b: abs(b - bits))
            raise ValueError(f"{name}={bits}: codes of a head of {width} do not fill whole bytes; the nearest that do have {near} bits")


def whole_or(group: int, head_dim: int) -> int:
    """Group 0, or one wider than the head, is the whole head."""
    return head_dim if group == 0 else min(group, head_dim)


NEWEST_DENSE = Range("residual", most="context", least=0, whole=True, wavy=True)
"""What fills a budget behind codes that leave some of it: keys are quantised ``residual`` at a time, so their bytes rise and fall."""


@dataclass(frozen=True)
class Quantiser(Method):
    """Keys and values quantised apart: per token at once, or behind the newest ``residual`` tokens, per token or per channel.

    A group is ``group`` channels of one token, or ``group`` tokens of one channel. Keys, and values per channel, are
    quantised ``residual`` tokens at a time; values per token slide out of the residual one by one.
    """

    family: ClassVar[str] = "quantisation"
    stores: ClassVar[bool] = True
    dial: ClassVar[Dial | None] = widest_codes(8, 4, 3, 2, fine=NEWEST_DENSE)
    k_bits: int = param(8, "bits of keys: 2, 3, 4, 8, or 16 (dense)")
    v_bits: int = param(8, "bits of values: 2, 3, 4, 8, or 16 (dense)")
    group: int = param(0, "channels (or tokens, per channel) that share a scale; 0 is the whole head", least=0)
    symmetric: bool = param(True, "store no zero point")
    k_axis: str = param("token", "keys per token or per channel", among=("token", "channel"))
    v_axis: str = param("token", "values per token or per channel", among=("token", "channel"))
    residual: int = param(0, "newest tokens kept dense; needed per channel, then a multiple of group", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(dense=True, k_bits=self.widths[0], v_bits=self.widths[1])
        if "channel" in (self.k_axis, self.v_axis):
            self._check_residual()

    def _check_residual(self) -> None:
        """Tokens that share a scale are quantised together, so they must first be there."""
        if self.group == 0:
            raise ValueError(f"group={self.group}; it must be a number of tokens where an axis is channel, for example 32")
        if self.residual < self.group or self.residual % self.group:
            near = max(1, round(self.residual / self.group)) * self.group
            raise ValueError(f"residual={self.residual}; it must be a multiple of group={self.group}, for example {near}")

    @property
    def widths(self) -> tuple[int, int]:
        """Bits of keys and of values."""
        return self.k_bits, self.v_bits

    def check(self, shape: Shape) -> None:
        if "token" in (self.k_axis, self.v_axis):
            must_divide("group", whole_or(self.group, shape.head_dim), shape.head_dim, "head size")
        check_packing(shape.head_dim, k_bits=self.widths[0], v_bits=self.widths[1])

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.quantised import QuantisedLayer, Side

        k_bits, v_bits = self.widths
        keys = Side("keys", self._scheme(k_bits, self.k_axis, context), self.residual, context.dtype)
        slides = self.residual > 0 and self.v_axis == "token"
        values = Side("values", self._scheme(v_bits, self.v_axis, context), self.residual, context.dtype, sliding=slides)
        return QuantisedLayer(context, keys, values)

    def stored(self, prompt: Prompt) -> int:
        sides = zip(self.widths, (self.k_axis, self.v_axis), strict=True)
        return sum(self._side(prompt, bits, axis, side) for side, (bits, axis) in enumerate(sides))

    def _side(self, prompt: Prompt, bits: int, axis: str, side: int) -> int:
        """Bytes of the keys (0) or of the values (1): codes, and behind them what is dense."""
        if bits == DENSE:
            return dense(prompt, prompt.tokens)
        by_channel, slides = axis == "channel", side == 1 and axis == "token"
        newest = 0 if not self.residual else min(prompt.tokens, self.residual) if slides else prompt.tokens % self.residual
        old = prompt.tokens - newest
        group = self.group if by_channel else whole_or(self.group, prompt.head_dim)
        codes = coded(prompt, old, bits, group, symmetric=self.symmetric, by_channel=by_channel) if old or not self.residual else 0
        return codes + (dense(prompt, newest) if self.residual else 0)

    def _scheme(self, bits: int, axis: str, context: LayerContext) -> Scheme | None:
        from kvbench.caches.packing import Scheme

        if bits == DENSE:
            return None
        group = self.group if axis == "channel" else whole_or(self.group, context.head_dim)
        return Scheme(bits, group, "channel" if axis == "channel" else "token", self.symmetric)
