"""Any press of NVIDIA's kvpress, by its class name."""

from __future__ import annotations

import inspect
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.errors import UnknownName
from kvbench.methods.method import Method, param
from kvbench.spec import MethodSpec, Params
from kvbench.spec.budgets import Dial, Range

if TYPE_CHECKING:
    from types import ModuleType

    from kvbench.caches.layer import LayerCache, LayerContext
    from kvbench.caches.needs import Needs
    from kvbench.caches.pressed import Press
    from kvbench.models.loading import Shape


@dataclass(frozen=True)
class KVPress(Method):
    """Runs ``kvpress:SnapKVPress,compression_ratio=0.5,window_size=32``: the press's own code on kvbench's prompt and cache.

    The press is given what it is given by kvpress: the attention module, its hidden states, and keys and
    values of the whole prompt. What it returns is stored, the continuation reads that, and the audit says what came
    of it: presses that cut heads alike are ``real``, those that cut head by head keep all keys and hide some
    (``masked``), those that zero channels are ``simulated``. Wrappers take the press that they wrap as
    ``inner``: ``kvpress:AdaKVPress,inner=SnapKVPress``; a parameter goes to whichever of the two has it.

    Needs the extra ``kvbench[kvpress]``, and so transformers 5.2 or older. Presses that compress while decoding,
    read the prompt several times or count positions anew are refused.
    """

    name: ClassVar[str] = "kvpress"
    title: ClassVar[str] = "A press of kvpress"
    family: ClassVar[str] = "plug-in"
    paper: ClassVar[str] = "the package kvpress by NVIDIA, arXiv 2510.00636"
    in_all: ClassVar[bool] = False
    protocols: ClassVar[tuple[str, ...]] = ("prefill",)
    takes_rest: ClassVar[str] = "options"
    dial: ClassVar[Dial | None] = Range("compression_ratio", most=0.0, least=1.0 - 1e-6)
    press: str = param("", "class of kvpress; any parameter not named here is the press's own")
    inner: str = param("", "class of the press that a wrapper wraps")
    compression_ratio: float = param(0.5, "fraction removed, [0, 1), for presses that take it", within="[0, 1)")
    options: Params = ()
    _press: Press = field(init=False, repr=False, compare=False)
    _model: Any = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.press:
            raise ValueError("press=; it must name a class of kvpress, for example kvpress:SnapKVPress")
        object.__setattr__(self, "_press", self._make())

    @property
    def needs(self) -> Needs:
        return self._press.needs

    def check(self, shape: Shape) -> None:
        given = MethodSpec.parse(self.label).options  # the run's own ratio is no claim that the press has one
        takes = [name for cls in self._classes() for name in _parameters(cls)]
        if "compression_ratio" in given and "compression_ratio" not in takes:
            raise ValueError(f"compression_ratio={self.compression_ratio}; {self.press} has no such parameter, it takes {', '.join(takes)}")

    def prepare(self, model: Any) -> None:
        """Let a press of its own look at each model."""
        if self._model is None or self._model() is not model:
            press = self._make()
            press.prepare(model)
            object.__setattr__(self, "_press", press)
            object.__setattr__(self, "_model", weakref.ref(model))

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.pressed import PressedLayer

        return PressedLayer(context, self._press)

    def _classes(self) -> list[type[Any]]:
        """The press's class and, of a wrapper, the wrapped one's."""
        from kvbench.caches.pressed import load_kvpress

        kvpress = load_kvpress()
        outer = _press_class(kvpress, "press", self.press)
        wraps = "press" in inspect.signature(outer).parameters
        if wraps and not self.inner:
            raise ValueError(f"press={self.press}; it wraps another press: add inner=, for example inner=SnapKVPress")
        if self.inner and not wraps:
            raise ValueError(f"inner={self.inner}; {self.press} wraps no other press")
        return [outer, _press_class(kvpress, "inner", self.inner)] if wraps else [outer]

    def _make(self) -> Press:
        """The press, each of its parameters with the class that has it, the wrapper first."""
        from kvbench.caches.pressed import make_press

        classes = self._classes()
        given: list[dict[str, Any]] = [{} for _ in classes]
        for name, value in (("compression_ratio", self.compression_ratio), *self.options):
            owner = next((own for own, cls in zip(given, classes, strict=True) if name in _parameters(cls)), None)
            if owner is not None:
                owner[name] = value
            elif name != "compression_ratio":
                takes = [known for cls in classes for known in _parameters(cls)]
                raise UnknownName(f"parameter of {self.press}:", name, takes, hint=f"use one of {', '.join(takes) or 'none'}")
        try:
            return make_press(classes, given)
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"press={self.press}; kvpress refuses its parameters: {error}") from error


def _press_class(kvpress: ModuleType, role: str, name: str) -> type[Any]:
    """A press that compresses a prompt once.

    Raises:
        UnknownName: kvpress has no such press. ValueError: it cannot be run here.
    """
    presses: dict[str, Any] = {n: c for n, c in vars(kvpress).items() if isinstance(c, type) and issubclass(c, kvpress.BasePress)}
    cls = presses.get(name)
    if cls is None:
        raise UnknownName("press", name, presses, hint="python -c 'import kvpress; print(kvpress.__all__)'")
    base = kvpress.BasePress
    if cls.__call__ is not base.__call__ or cls.forward_hook is not base.forward_hook:
        why = "works while decoding, in several passes or on the whole model"
    elif issubclass(cls, kvpress.KeyRerotationPress):
        why = "counts positions anew, and kvbench goes on at the tokens seen"
    elif cls in (base, kvpress.ScorerPress):
        why = "is a base class"
    else:
        return cls  # type: ignore[no-any-return]
    raise ValueError(f"{role}={name}; it {why}; kvbench runs presses that compress a prompt once, for example SnapKVPress")


def _parameters(cls: type[Any]) -> list[str]:
    """What a press's constructor takes, other presses left out."""
    return [name for name in inspect.signature(cls).parameters if name not in ("press", "presses") and not name.startswith("_")]
