"""Bytes that a method will store, before any model is loaded: reckoned from sizes by the method's own rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from kvbench.caches.reckon import Prompt
from kvbench.methods.method import Method
from kvbench.models.shape import ITEM_SIZES, Shape, cache_bytes_per_token

_AUTO = "bfloat16"
_STORAGE = frozenset({"layer", "over", "join"})
"""What a class defines anew where it stores otherwise than the class that it derives from."""


def expected_bytes(method: Method, shape: Shape, context: int, cache_dtype: str = "auto", *, wide: int = 4) -> int | None:
    """Stored bytes of one sequence of ``context`` tokens over all layers.

    ``None`` where something else than sizes decides: a calibration (a rank by retained energy), the text (a threshold), other
    layers. A method that does not say what it stores fills a layer without numbers (:mod:`kvbench.budgeting.unsaid`).

    Args:
        wide: Bytes of a running sum: 4, or 8 where the model computes in float64.
    """
    itemsize = ITEM_SIZES[_AUTO if cache_dtype == "auto" else cache_dtype]
    if not says(method):
        from kvbench.budgeting.unsaid import unsaid_bytes

        return None if is_coupled(method) else unsaid_bytes(method, shape, context, _AUTO if cache_dtype == "auto" else cache_dtype)

    def layer_bytes(index: int) -> int | None:
        return method.stored(Prompt(index, shape.layers, shape.heads, shape.kv_heads, shape.head_dim, context, itemsize, wide))

    ends = [layer_bytes(index) for index in (0, shape.layers - 1)]
    if ends[0] == ends[1]:  # budgets that differ by layer do so monotonically
        return None if ends[0] is None else ends[0] * shape.layers
    found = [layer_bytes(index) for index in range(shape.layers)]
    return None if None in found else sum(stored for stored in found if stored is not None)


def says(method: Method) -> bool:
    """Whether the method says what it stores, and does not store otherwise than the class that says it; of a composition both parts."""
    parts = [part for name in ("keeper", "storer") if (part := getattr(method, name, None)) is not None]
    if not all(says(part) for part in parts):
        return False
    for cls in type(method).__mro__:
        if "stored" in vars(cls):
            return cls is not Method
        if _STORAGE & vars(cls).keys():
            return False
    return False


def is_coupled(method: Method) -> bool:
    """Whether the method, or of a composition the one that keeps tokens, ties layers together."""
    keeper: Method = getattr(method, "keeper", method)
    return type(keeper).join is not Method.join


class Unknown(Exception):
    """What a method stores is not decided by the model's shape."""


@dataclass
class ShapeScale:
    """Weighs methods by a model's shape, before it is loaded.

    Attributes:
        shape: The model's. tokens: Of the context. dtype: Of the cache.
    """

    shape: Shape
    tokens: int
    dtype: str
    _known: dict[Method, int] = field(default_factory=dict)

    @cached_property
    def baseline(self) -> int:
        return cache_bytes_per_token(self.shape, ITEM_SIZES[self.dtype]) * self.tokens

    def estimate(self, method: Method) -> int:
        return self.weigh(method)

    def weigh(self, method: Method) -> int:
        """Stored bytes.

        Raises:
            Unknown: a calibration decides them, or what other layers store.
        """
        if method not in self._known:
            found = expected_bytes(method, self.shape, self.tokens, self.dtype)
            if found is None:
                raise Unknown
            self._known[method] = found
        return self._known[method]
