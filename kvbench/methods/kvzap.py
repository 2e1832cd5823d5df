"""KVzap: tokens that a small model of the hidden state finds worthless."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kvbench.caches.needs import Needs
from kvbench.caches.reckon import Prompt
from kvbench.methods.method import Method, param
from kvbench.spec.budgets import Dial, Range, Settings

if TYPE_CHECKING:
    from kvbench.caches.layer import LayerCache, LayerContext


@dataclass(frozen=True)
class KVzap(Method):
    """Thresholded eviction in each KV head, while decoding too (Jégou and Jeblick, arXiv 2601.07891, §3).

    A surrogate predicts from a token's hidden state the logarithm of its KVzip+ score: the largest attention it gets
    when the model repeats the prompt, times the norm of what it then writes, over the asking token's norm. A token
    that has left the newest ``window`` is dropped if that is below ``threshold``. How much is kept follows from the
    text: ``threshold=-4`` is what the published weights of Qwen3-8B are used with. ``surrogate=linear`` or ``mlp`` is
    calibrated for the model on first use (``kvbench calibrate kvzap``).
    """

    name: ClassVar[str] = "kvzap"
    title: ClassVar[str] = "KVzap"
    family: ClassVar[str] = "head-wise eviction"
    paper: ClassVar[str] = "KVzap: Fast, Adaptive, and Faithful KV Cache Pruning, arXiv 2601.07891"
    selects: ClassVar[bool] = True
    variants: ClassVar[tuple[str, ...]] = ("kvzap", "kvzap:threshold=-4")
    trial: ClassVar[str | None] = "kvzap:threshold=-1.1,window=32"
    dial: ClassVar[Dial | None] = Settings(
        tuple({"window": tokens} for tokens in (128, 64, 32, 16)), fine=Range("threshold", most=-50.0, least=50.0)
    )
    threshold: float = param(-7.0, "least score that is kept, natural logarithm")
    window: int = param(128, "newest tokens that are always kept", least=0)
    surrogate: str = param("linear", "linear or mlp, calibrated here; or the hub id or folder of published weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.surrogate not in ("linear", "mlp") and "/" not in self.surrogate:
            example = "for example nvidia/KVzap-mlp-Qwen3-8B"
            raise ValueError(f"surrogate={self.surrogate}; it must be linear, mlp, or a hub id or folder, {example}")
        if self.surrogate.startswith(("/", ".", "~")):
            self._check_folder(Path(self.surrogate).expanduser())

    def _check_folder(self, folder: Path) -> None:
        """Refuse a place without weights that may be read, before a model is loaded."""
        if not folder.is_dir():
            raise ValueError(f"surrogate={self.surrogate}; it must be a folder that is there, or linear or mlp")
        if not any(folder.glob("*.safetensors")):
            raise ValueError(f"surrogate={self.surrogate}; it must hold a .safetensors file: no other format is read, pickles least of all")

    @property
    def _artefact(self) -> str:
        return f"surrogate:{self.surrogate}"

    @property
    def needs(self) -> Needs:
        return Needs(surrogate=(self._artefact,))

    @property
    def artefacts(self) -> tuple[str, ...]:
        parts = ("w1", "b1") if self.surrogate == "linear" else ("w1", "b1", "w2", "b2")
        return tuple(f"{self._artefact}/{part}" for part in parts)

    def stored(self, prompt: Prompt) -> int | None:
        """The text decides."""
        return None

    def stored_over(self, prompt: Prompt, store: Method) -> int | None:
        return None

    def layer(self, context: LayerContext) -> LayerCache:
        from kvbench.caches.threshold import SurrogateHeads

        return SurrogateHeads(context, self._artefact, self.threshold, self.window)

    def over(self, context: LayerContext, store: Method) -> LayerCache:
        from kvbench.caches.threshold import SurrogateHeads

        return SurrogateHeads(context, self._artefact, self.threshold, self.window, store.layer)
