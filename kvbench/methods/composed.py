"""One method keeps some of the tokens, another stores them: ``snapkv+kivi:bits=2``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.reckon import Prompt
from kvbench.errors import UsageError
from kvbench.methods.method import Method

if TYPE_CHECKING:
    from kvbench.caches.layer import LayerCache, LayerContext
    from kvbench.caches.needs import Needs
    from kvbench.models.loading import Shape


@dataclass(frozen=True)
class Composed(Method):
    """The tokens that ``keeper`` keeps, as ``storer`` stores them; tokens after the prompt too are stored so."""

    family: ClassVar[str] = "composed"
    keeper: Method
    storer: Method

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"{self.keeper.title} + {self.storer.title}"

    @property
    def paper(self) -> str:  # type: ignore[override]
        return f"{self.keeper.paper}; {self.storer.paper}"

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.keeper.name}+{self.storer.name}"

    @property
    def protocols(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(p for p in self.keeper.protocols if p in self.storer.protocols)

    @property
    def needs(self) -> Needs:
        return self.keeper.needs | self.storer.needs

    @property
    def artefacts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.keeper.artefacts, *self.storer.artefacts)))

    def stored(self, prompt: Prompt) -> int | None:
        return self.keeper.stored_over(prompt, self.storer)

    def layer(self, context: LayerContext) -> LayerCache:
        return self.keeper.over(context, self.storer)

    def join(self, layers: Sequence[LayerCache]) -> None:
        self.keeper.join(layers)

    def check(self, shape: Shape) -> None:
        self.keeper.check(shape)
        self.storer.check(shape)


def compose(keeper: Method, storer: Method, label: str, storers: Callable[[], Sequence[str]]) -> Composed:
    """``keeper+storer``, where that makes sense.

    Args:
        label: As the user wrote it. storers: Names of methods that could store, for a hint.

    Raises:
        UsageError: the first keeps every token, the second cannot store what another keeps, or a parameter stands against it.
    """
    first, second = type(keeper).name, type(storer).name
    if not type(keeper).selects:
        turned = f"write {second}+{first}" if type(storer).selects and type(keeper).stores else f"for example snapkv+{first}"
        raise UsageError(f"'{label}': {first} keeps every token, so nothing is left to {second}", hint=turned)
    if not type(storer).stores:
        hint = f"after the + write one of {', '.join(storers())}"
        raise UsageError(f"'{label}': {second} cannot store what {first} keeps", hint=hint)
    try:
        keeper.check_over()
    except ValueError as error:
        raise UsageError(f"'{label}': {error}", hint=f"write {first}:decode=grow+{second}") from error
    return Composed(keeper, storer)
