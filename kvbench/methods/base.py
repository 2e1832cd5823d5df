"""What a method is: parameters, and the layer that stores by its rule. Importable without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.caches.needs import Needs
from kvbench.errors import UsageError
from kvbench.parameters import build, param, parameters
from kvbench.registry import Registry
from kvbench.spec import MethodSpec, RunSpec, split_list

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import LayerCache, LayerContext, TokenView
    from kvbench.models import Shape

__all__ = ["CONTROLS", "METHODS", "Eviction", "Method", "check_window", "expand", "must_divide", "param", "refuse", "resolve"]

CONTROLS = ("baseline", "random")
"""In every table: what nothing removed gives, and what removing without thought gives."""


@dataclass(frozen=True)
class Method:
    """Base of methods. Subclasses are frozen dataclasses; their fields are their parameters.

    Class attributes:
        name: Registered name. title: As written in papers. family: Heading in ``kvbench list methods``.
        paper: Source (title, arXiv id). variants: What ``all`` runs of it, if not the name alone; ``in_all``: whether it does at all.
        protocols: Under which it is defined.
        calibration: Name of the calibrated artefact it needs, or ``None``.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    family: ClassVar[str]
    paper: ClassVar[str]
    variants: ClassVar[tuple[str, ...]] = ()
    in_all: ClassVar[bool] = True
    protocols: ClassVar[tuple[str, ...]] = ("prefill", "streaming")
    calibration: ClassVar[str | None] = None

    @property
    def label(self) -> str:
        """Row identity as the user wrote it; set by :func:`resolve`."""
        return getattr(self, "_label", self.name)

    @property
    def needs(self) -> Needs:
        """Query statistics that compression reads."""
        return Needs()

    def layer(self, context: LayerContext) -> LayerCache:
        """An empty layer that stores by this method's rule."""
        raise NotImplementedError(f"{type(self).__name__} does not say how a layer stores")

    def join(self, layers: Sequence[LayerCache]) -> None:
        """Tie the layers of a new cache together, where the method couples layers. Nothing by default."""

    def check(self, shape: Shape) -> None:
        """Refuse a model that the parameters do not fit, before it is loaded.

        Raises:
            ValueError: names the parameter and the nearest valid value.
        """

    @classmethod
    def parameters(cls) -> list[tuple[str, Any, str]]:
        """(name, default, meaning) of each parameter."""
        return parameters(cls)


@dataclass(frozen=True)
class Eviction(Method):
    """Base of methods that keep the highest-scored tokens of each KV head: subclasses define :meth:`score`.

    The prompt is cut once after its own attention to ``max(1, ⌊n · (1 − ratio)⌋)`` tokens. ``decode=grow``: the
    cache grows after it. ``decode=hold``: after every ``interval`` tokens the kept and the fresh are scored
    again and cut to the same number. Kept keys keep their original RoPE positions.
    """

    family: ClassVar[str] = "eviction"
    compression_ratio: float = param(0.5, "fraction of the prompt's tokens removed, [0, 1)")
    decode: str = param("grow", "after the prompt: grow, or hold the number of tokens")
    interval: int = param(64, "decode=hold: tokens between two evictions")

    def __post_init__(self) -> None:
        if not 0.0 <= self.compression_ratio < 1.0:
            raise ValueError(f"compression_ratio={self.compression_ratio}; it is the fraction removed and lies in [0, 1)")
        if self.decode not in ("grow", "hold"):
            raise ValueError(f"decode={self.decode}; it must be grow or hold")
        if self.interval < 1:
            raise ValueError(f"interval={self.interval}; it must be at least 1")

    @property
    def evict_every(self) -> int | None:
        """Tokens between two evictions while decoding, or ``None``."""
        return self.interval if self.decode == "hold" else None

    def kept(self, tokens: int, layer: LayerContext) -> int:
        """How many of ``tokens`` are kept in each KV head of ``layer``."""
        from kvbench.caches.evicted import kept_count

        return kept_count(tokens, self.compression_ratio)

    def score(self, tokens: TokenView) -> Tensor:
        """How much each token is worth keeping, ``[B, Hkv, T]``."""
        raise NotImplementedError(f"{type(self).__name__} has no score")

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.evicted import EvictedLayer

        return EvictedLayer(context, self)


METHODS: Registry[Method] = Registry("kvbench.methods", "method")


def expand(texts: Sequence[str]) -> tuple[MethodSpec, ...]:
    """Turn ``--methods`` into specs: ``all`` is every method's variants; the controls come first, always.

    Raises:
        UnknownName: a method that is not registered.
    """
    asked: list[MethodSpec] = [MethodSpec.parse(name) for name in CONTROLS]
    for text in (part for given in texts for part in split_list(given)):
        if text == "all":
            found = [MethodSpec.parse(v) for name in METHODS.names() for v in _variants(name)]
        else:
            found = [MethodSpec.parse(text)]
            METHODS.load(found[0].name)
        asked.extend(found)
    return tuple({spec.label: spec for spec in asked}.values())


def _variants(name: str) -> tuple[str, ...]:
    cls = METHODS.load(name)
    return (cls.variants or (name,)) if cls.in_all else ()


def resolve(spec: MethodSpec, run: RunSpec) -> Method:
    """The method of ``spec`` with the run's compression ratio as default.

    Raises:
        UnknownName, UsageError: an unknown method or parameter, or a value out of range.
    """
    cls = METHODS.load(spec.name)
    has_ratio = any(f.name == "compression_ratio" and f.init for f in fields(cls))
    if has_ratio and "compression_ratio" not in spec.options:
        given = replace(spec, params=(*spec.params, ("compression_ratio", run.compression_ratio)))
    else:
        given = spec
    method: Method = build(cls, given, "method")
    object.__setattr__(method, "_label", spec.label)
    return method


def must_divide(name: str, value: int, total: int, what: str) -> None:
    """Refuse a group that does not divide an axis.

    Raises:
        ValueError: with the nearest divisor.
    """
    if value < 1 or total % value:
        best = min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - value))
        raise ValueError(f"{name}={value} does not divide the {what}, {total}; the nearest that does is {best}")


def check_window(window: int, kernel: int) -> None:
    """Refuse an observation window or a pooling width that cannot be.

    Raises:
        ValueError: with the nearest value.
    """
    if window < 1:
        raise ValueError(f"window={window}; it must be at least 1")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel={kernel}; it must be odd, for example {max(1, kernel | 1)}")


def refuse(spec: MethodSpec | str, error: ValueError) -> UsageError:
    """A method's own objection as a usage error."""
    label = spec if isinstance(spec, str) else spec.label
    return UsageError(f"method '{label}': {error}", hint=f"kvbench list methods  # parameters of {label.split(':')[0]}")
