"""What a method is: parameters, and the layer that stores by its rule. Importable without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.caches.needs import Needs
from kvbench.caches.reckon import Place, Prompt, held, kept_count
from kvbench.spec.budgets import Dial, Range
from kvbench.spec.parameters import check_values, check_window, must_be, must_divide, param, parameters

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import LayerCache, LayerContext, TokenView
    from kvbench.models.loading import Shape

__all__ = ["Eviction", "Method", "check_window", "must_be", "must_divide", "param"]


@dataclass(frozen=True)
class Method:
    """Base of methods. Subclasses are frozen dataclasses; their fields are their parameters.

    Class attributes:
        name: Registered name. title: As written in papers. family: Heading in ``kvbench list methods``.
        paper: Source (title, arXiv id). variants: What ``all`` runs of it, if not the name alone; ``in_all``: whether it does at all.
        protocols: Under which it is defined.
        selects: It decides which tokens are kept, and leaves how they are stored to another method after a ``+``.
        stores: It can store the tokens that another method keeps.
        takes_rest: Field that is given the parameters that the method itself does not name, or ``None`` to refuse them.
        trial: How ``kvbench verify`` tries it on tiny random models where it is given no parameters: those of a method whose
            defaults would find nothing to do there.
        dial: What is turned to meet a budget (``--budget 4x``), or ``None`` where nothing can be.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    family: ClassVar[str]
    paper: ClassVar[str]
    variants: ClassVar[tuple[str, ...]] = ()
    in_all: ClassVar[bool] = True
    protocols: ClassVar[tuple[str, ...]] = ("prefill", "streaming")
    selects: ClassVar[bool] = False
    stores: ClassVar[bool] = False
    takes_rest: ClassVar[str | None] = None
    trial: ClassVar[str | None] = None
    dial: ClassVar[Dial | None] = None

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def label(self) -> str:
        """Row identity as the user wrote it; set by :func:`resolve`."""
        return getattr(self, "_label", self.name)

    @property
    def needs(self) -> Needs:
        """Query statistics that compression reads."""
        return Needs()

    @property
    def artefacts(self) -> tuple[str, ...]:
        """Names of the calibrated tensors that its layers read (:mod:`kvbench.calibration` makes them)."""
        return ()

    def prepare(self, model: Any) -> None:
        """Look at the whole model before a cache of it is built. Nothing by default."""

    def layer(self, context: LayerContext) -> LayerCache:
        """An empty layer that stores by this method's rule."""
        raise NotImplementedError(f"{type(self).__name__} does not say how a layer stores")

    def over(self, context: LayerContext, store: Method) -> LayerCache:
        """An empty layer of the tokens that this method keeps, stored as ``store`` does."""
        raise NotImplementedError(f"{type(self).__name__} keeps every token")

    def check_over(self) -> None:
        """Refuse parameters that cannot be had when another method stores the tokens.

        Raises:
            ValueError: names the parameter.
        """

    def join(self, layers: Sequence[LayerCache]) -> None:
        """Tie the layers of a new cache together, where the method couples layers. Nothing by default."""

    def stored(self, prompt: Prompt) -> int | None:
        """Bytes that one layer stores of a prompt, all of which ``layer`` would count; ``None`` where a calibration, the text or
        other layers decide.

        A method that says this is planned, and solved for a budget, without anything being stored
        (:mod:`kvbench.caches.reckon`); for one that does not, a layer without numbers is filled.

        Raises:
            NotImplementedError: the method does not say.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it stores before it has")

    def stored_over(self, prompt: Prompt, store: Method) -> int | None:
        """As :meth:`stored`, of a layer that ``over`` makes."""
        raise NotImplementedError(f"{type(self).__name__} keeps every token")

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
    again and cut to the same number; what that takes is stored beside the tokens: their positions, and of window queries
    those that ``interval`` newer ones leave in the window. Kept keys keep their original RoPE positions.
    """

    family: ClassVar[str] = "eviction"
    selects: ClassVar[bool] = True
    in_order: ClassVar[bool] = False
    """Whether the score reads the order in which tokens are held; otherwise only their positions."""
    dial: ClassVar[Dial | None] = Range("compression_ratio", most=0.0, least=1.0 - 1e-6)
    compression_ratio: float = param(0.5, "fraction of the prompt's tokens removed, [0, 1)", within="[0, 1)")
    decode: str = param("grow", "after the prompt: grow, or hold the number of tokens", among=("grow", "hold"))
    interval: int = param(64, "decode=hold: tokens between two evictions", least=1)

    @property
    def evict_every(self) -> int | None:
        """Tokens between two evictions while decoding, or ``None``."""
        return self.interval if self.decode == "hold" else None

    def kept(self, tokens: int, layer: Place) -> int:
        """How many of ``tokens`` are kept in each KV head of ``layer``."""
        return kept_count(tokens, self.compression_ratio)

    def stored(self, prompt: Prompt) -> int | None:
        return held(prompt, self.needs, self.kept(prompt.tokens, prompt), self.evict_every)

    def stored_over(self, prompt: Prompt, store: Method) -> int | None:
        return store.stored(prompt.of(self.kept(prompt.tokens, prompt)))

    def score(self, tokens: TokenView) -> Tensor:
        """How much each token is worth keeping, ``[B, Hkv, T]``."""
        raise NotImplementedError(f"{type(self).__name__} has no score")

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.evicted import EvictedLayer

        return EvictedLayer(context, self)

    def over(self, context: LayerContext, store: Method) -> LayerCache:
        from kvbench.caches.composed import ComposedLayer

        return ComposedLayer(context, self, store.layer(context))

    def check_over(self) -> None:
        if self.decode == "hold":
            raise ValueError(f"decode={self.decode}; it must be grow where another method stores the tokens: they are not scored again")
