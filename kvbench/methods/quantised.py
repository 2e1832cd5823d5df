"""Shared by the methods that quantise each token on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.methods.base import Method, must_divide, param

if TYPE_CHECKING:
    from kvbench.caches.layer import LayerCache, LayerContext
    from kvbench.models import Shape

BITS = (2, 3, 4, 8)


def check_bits(**given: int) -> None:
    """Refuse a bit width that cannot be packed.

    Raises:
        ValueError: names the parameter and the widths there are.
    """
    for name, bits in given.items():
        if bits not in BITS:
            near = min(BITS, key=lambda b: abs(b - bits))
            raise ValueError(f"{name}={bits}; it must be 2, 3, 4 or 8, for example {near}")


def check_packing(head_dim: int, **given: int) -> None:
    """Refuse codes of one head that do not fill whole bytes.

    Raises:
        ValueError: names the parameter and the nearest width that does.
    """
    for name, bits in given.items():
        if head_dim * bits % 8:
            near = min((b for b in BITS if head_dim * b % 8 == 0), key=lambda b: abs(b - bits))
            raise ValueError(f"{name}={bits}: codes of a head of {head_dim} do not fill whole bytes; the nearest that do have {near} bits")


def whole_or(group: int, head_dim: int) -> int:
    """Group 0, or one wider than the head, is the whole head."""
    return head_dim if group == 0 else min(group, head_dim)


@dataclass(frozen=True)
class PerToken(Method):
    """Keys and values per token, in groups of channels; a token is stored quantised as soon as it comes."""

    family: ClassVar[str] = "quantisation"
    k_bits: int = param(8, "bits of keys: 2, 3, 4 or 8")
    v_bits: int = param(8, "bits of values: 2, 3, 4 or 8")
    group: int = param(0, "channels that share a scale; 0 is the whole head")
    symmetric: bool = param(True, "store no zero point")

    def __post_init__(self) -> None:
        check_bits(k_bits=self.k_bits, v_bits=self.v_bits)
        if self.group < 0:
            raise ValueError(f"group={self.group}; it must be 0 or more")

    def check(self, shape: Shape) -> None:
        must_divide("group", whole_or(self.group, shape.head_dim), shape.head_dim, "head size")
        check_packing(shape.head_dim, k_bits=self.k_bits, v_bits=self.v_bits)

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.packing import Scheme
        from kvbench.caches.quantised import QuantisedLayer

        group = whole_or(self.group, context.head_dim)
        schemes = (Scheme(bits, group, symmetric=self.symmetric) for bits in (self.k_bits, self.v_bits))
        return QuantisedLayer(context, *schemes)
