"""What a method is: parameters, and the layer that stores by its rule. Importable without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.budgets import Budget, Dial, Range, parse_budgets
from kvbench.caches.needs import Needs
from kvbench.caches.reckon import Place, Prompt, held, kept_count
from kvbench.errors import KvbenchError, UsageError
from kvbench.parameters import build, check_window, must_divide, param, parameters
from kvbench.registry import Broken, Registry, reason
from kvbench.spec import MethodSpec, ParamValue, RunSpec, split_list

if TYPE_CHECKING:
    from torch import Tensor

    from kvbench.caches.layer import LayerCache, LayerContext, TokenView
    from kvbench.models import Shape

__all__ = [
    "CONTROLS",
    "METHODS",
    "Eviction",
    "Method",
    "check_window",
    "expand",
    "left_out",
    "must_divide",
    "named",
    "objections",
    "param",
    "refuse",
    "resolve",
]

CONTROLS = ("baseline", "random")
"""In every table: what nothing removed gives, and what removing without thought gives."""


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


def facts(cls: type[Method]) -> dict[str, Any]:
    """What ``kvbench list`` says of a method; reads all that a table, ``all`` and the plan read of its class.

    Raises:
        Exception: whatever reading it raises; a ``TypeError`` where something is missing or of another kind.
    """
    for name in ("name", "title", "family", "paper"):
        if not isinstance(getattr(cls, name, None), str):
            raise TypeError(f"its class has no text '{name}'")
    if not all(isinstance(text, str) for text in (*cls.variants, *cls.protocols)):
        raise TypeError("its class has variants or protocols that are no texts")
    read = {"name": cls.name, "title": cls.title, "family": cls.family, "paper": cls.paper, "parameters": cls.parameters()}
    _ = (cls.in_all, cls.selects, cls.stores, cls.takes_rest, cls.trial)
    return {**read, "budget": list(cls.dial.parameters) if cls.dial else []}


METHODS: Registry[Method] = Registry("kvbench.methods", "method", Method, facts, reserved=["all"])


def expand(texts: Sequence[str], budget: str | None = None, protocol: str = "prefill") -> tuple[MethodSpec, ...]:
    """Turn ``--methods`` into specs: ``all`` is every method's variants; the controls come first, always.

    Args:
        budget: Budgets, each of which every method but the baseline is to meet that has none of its own. ``all`` is then
            every method once: what its variants fix is what a budget turns.
        protocol: ``all`` is the methods that are defined under it.

    Raises:
        UnknownName: a method that is not registered.
        UsageError: a budget that is none.
    """
    asked: list[MethodSpec] = [MethodSpec.parse(name) for name in CONTROLS]
    for text in (part for given in texts for part in split_list(given)):
        found = _all(budget, protocol)[0] if text == "all" else [MethodSpec.parse(text)]
        for spec in found:
            METHODS.load(spec.name)
            if spec.store is not None:
                METHODS.load(spec.store.name)
        asked.extend(found)
    if budget is not None:
        asked = _budgeted(asked, parse_budgets(budget))
    return tuple({spec.label: spec for spec in asked}.values())


def named(texts: Sequence[str]) -> tuple[MethodSpec, ...]:
    """The methods that ``--methods`` names one by one."""
    return tuple(MethodSpec.parse(part) for given in texts for part in split_list(given) if part != "all")


def _budgeted(asked: Sequence[MethodSpec], budgets: Sequence[Budget]) -> list[MethodSpec]:
    """Budget by budget, so that rows that may be compared stand together; the baseline and rows with a budget of their own first."""
    free = [spec for spec in asked if spec.budget is None and spec.name != CONTROLS[0]]
    return [*(s for s in asked if s not in free), *(replace(s, budget=budget.text) for budget in budgets for s in free)]


def left_out(texts: Sequence[str], budget: str | None = None, protocol: str = "prefill") -> tuple[str, ...]:
    """A line for each plug-in that ``all`` leaves out of these ``--methods``, since it cannot be used."""
    if "all" not in [part for given in texts for part in split_list(given)]:
        return ()
    return tuple(f"method left out: {broken}" for broken in _all(budget, protocol)[1])


def _all(budget: str | None, protocol: str) -> tuple[list[MethodSpec], list[Broken]]:
    """What ``all`` stands for, and what cannot be used. Each is built once here, so that one that cannot be stops no other."""
    found: list[MethodSpec] = []
    lost = METHODS.broken()
    for name, cls in METHODS.usable().items():
        try:
            variants = [MethodSpec.parse(text) for text in _variants(cls, protocol, all_alike=budget is not None)]
            for spec in variants:
                resolve(spec, RunSpec())
        except Exception as error:
            lost.append(Broken(name, METHODS.source_of(name), reason(error)))
        else:
            found += variants
    return found, lost


def _variants(cls: type[Method], protocol: str, *, all_alike: bool) -> tuple[str, ...]:
    if not cls.in_all or protocol not in cls.protocols:
        return ()
    return (() if all_alike else cls.variants) or (cls.name,)


def resolve(spec: MethodSpec, run: RunSpec, turned: Mapping[str, ParamValue] | None = None) -> Method:
    """The method of ``spec`` with the run's compression ratio as default.

    Args:
        turned: Parameters that its budget set; its label stays what was asked for.

    Raises:
        UnknownName, UsageError: an unknown method or parameter, or a value out of range.
    """
    label, spec = spec.label, spec.turned(turned or {})
    cls = METHODS.load(spec.name)
    has_ratio = any(f.name == "compression_ratio" and f.init for f in fields(cls))
    first = next((name for name, _, _ in cls.parameters()), "")
    asked = {key or first for key, _ in spec.params}
    own = replace(spec, store=None)
    if has_ratio and "compression_ratio" not in asked:
        own = replace(own, params=(*spec.params, ("compression_ratio", run.compression_ratio)))
    method: Method = build(cls, own, "method")
    if spec.store is not None:
        from kvbench.methods.composed import compose

        method = compose(method, resolve(spec.store, run), spec)
    object.__setattr__(method, "_label", label)
    return method


def refuse_taken(spec: MethodSpec) -> None:
    """Refuse a method that a user named and that more than one package claims to be.

    Raises:
        UsageError: names the packages.
    """
    if spec.name not in CONTROLS:  # which every run has, whoever claims them
        METHODS.refuse_taken(spec.name)
    if spec.store is not None:
        refuse_taken(spec.store)


def free(text: str) -> MethodSpec:
    """The specification of one method outside a run, where there is no length for which it could meet a budget.

    Raises:
        UsageError: it has a budget, or more than one package claims its name.
    """
    spec = MethodSpec.parse(text)
    if spec.budget is not None:
        hint = f"kvbench run --methods {spec.label} says which parameters meet it"
        raise UsageError(f"'{spec.label}': a budget is met at a run's length, and here is none", hint=hint)
    refuse_taken(spec)
    return spec


@contextmanager
def objections(label: str) -> Iterator[None]:
    """What a method says against a model as a usage error, and whatever else its check raises as well.

    Raises:
        UsageError: names the method.
    """
    try:
        yield
    except KvbenchError:
        raise
    except ValueError as error:
        raise refuse(label, error) from error
    except Exception as error:
        raise UsageError(f"method '{label}' broke while it was checked: {reason(error)}", hint=f"kvbench verify {label}") from error


def refuse(spec: MethodSpec | str, error: ValueError) -> UsageError:
    """A method's own objection as a usage error."""
    label = spec if isinstance(spec, str) else spec.label
    return UsageError(f"method '{label}': {error}", hint=f"kvbench list methods  # parameters of {label.split(':')[0]}")
