"""Greedy decoding from a compressed cache, on the path that reads it best: what ``speed`` and ``capacity`` time.

``fused`` reads what is stored in its own layout by kernels (:mod:`kvbench.fused`), a step captured as one CUDA graph;
``reference`` reads it in plain PyTorch through the model's own forward, for every method on every device.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kvbench.caches.cache import KVCache
from kvbench.caches.fold import Fold
from kvbench.caches.lowrank import LowRankLayer
from kvbench.errors import UsageError
from kvbench.instruments.roofline import folded_difference, weight_bytes

if TYPE_CHECKING:
    from kvbench.instruments.protocol import Runner
    from kvbench.instruments.session import Session

Path = Literal["auto", "fused", "reference"]
SETTLING_STEPS = {"reference": 1, "fused": 3}
"""Decode steps before a clock starts: the first allocate and compile, and a graph's first replays are not like others."""


class Decoder(ABC):
    """Greedy decoding of B sequences of equal length.

    Attributes:
        read_path: ``fused`` or ``reference``. reason: Why it is not the fused path with captured steps; else empty.
        prepare_s: Seconds of laying the cache out, compiling and warming up. capture_s: Of recording graphs.
        flush_s: Seconds of packing one full group, where the path knows.
    """

    read_path: str
    flush_s: float | None = None

    def __init__(self, runner: Runner, reason: str) -> None:
        self.runner, self.reason = runner, reason
        self.prepare_s = self.capture_s = 0.0
        self._found: list[Tensor] = []

    @abstractmethod
    def start(self, first: Tensor) -> None:
        """Begin with tokens ``[B]``, or with the final hidden states ``[B, hidden]`` or logits ``[B, vocabulary]`` that predict them."""

    @abstractmethod
    def _steps(self, n: int) -> Tensor:
        """The next ``n`` tokens ``[B, n]``."""

    @abstractmethod
    def _folds(self) -> Sequence[tuple[Any, Fold]]:
        """Attention modules whose projections have a value basis folded in."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the cache and of graphs."""

    def steps(self, n: int) -> Tensor:
        """The next ``n`` tokens ``[B, n]``, on the device; each is predicted by a step that fed the one before it."""
        self._found.append(self._steps(n))
        return self._found[-1]

    @property
    def tokens(self) -> Tensor:
        """All tokens that :meth:`steps` gave, ``[B, n]``.

        Raises:
            ValueError: no step was taken yet.
        """
        if not self._found:
            raise ValueError("no step was taken yet")
        return torch.cat(self._found, 1)

    def read_bytes(self) -> int | None:
        """Bytes of the cache that the next step reads, where that is known apart from the ledger."""
        return None

    def weight_bytes(self) -> int | None:
        """Bytes of weights that a step reads, folded projections in place of the module's; ``None`` for a mixture of experts."""
        whole = weight_bytes(self.runner.model)
        return None if whole is None else whole + folded_difference(self._folds())

    def _logits(self, first: Tensor) -> Tensor:
        """Logits ``[B, vocabulary]`` of final hidden states; logits as they are."""
        head = self.runner.model.get_output_embeddings()
        return self.runner.logits(first) if first.shape[-1] == head.weight.shape[1] else first


class ReferenceDecoder(Decoder):
    """One forward of the model a token."""

    read_path = "reference"

    def __init__(self, runner: Runner, cache: KVCache, reason: str) -> None:
        super().__init__(runner, reason)
        self._cache: KVCache | None = cache
        self._device = runner.model.get_input_embeddings().weight.device
        self._token: Tensor | None = None

    @torch.inference_mode()
    def start(self, first: Tensor) -> None:
        token = self._logits(first).argmax(-1) if first.is_floating_point() else first
        self._token = token[:, None].to(self._device)

    @torch.inference_mode()
    def _steps(self, n: int) -> Tensor:
        if self._token is None or self._cache is None:
            raise UsageError("a decoder that was not started, or is closed, cannot decode", hint="call start() first")
        found = []
        for _ in range(n):
            hidden = self.runner.forward(self._token, self._cache)
            self._token = self.runner.logits(hidden[:, -1]).argmax(-1, keepdim=True).to(self._device)
            found.append(self._token)
        return torch.cat(found, 1)

    def _folds(self) -> Sequence[tuple[Any, Fold]]:
        layers = self._cache.layers if self._cache is not None else ()
        return [(layer.context.module, layer.fold) for layer in layers if isinstance(layer, LowRankLayer) and layer.fold is not None]

    def close(self) -> None:
        self._cache = self._token = None


class FusedDecoding(Decoder):
    """Kernels over the cache's own layout, a step a graph replay.

    Args:
        cache: Its storage is taken over. reserve: Tokens that may follow.

    Raises:
        NotFused: a layer's storage has no kernel, and the cache is as it was; or the model has no such decoder, and it is gone.
    """

    read_path = "fused"

    def __init__(self, runner: Runner, cache: KVCache, reserve: int) -> None:
        from kvbench.fused.layer import fuse

        super().__init__(runner, "")
        started = time.perf_counter()
        self._state: Any = fuse(cache, runner, reserve)
        self._decoder: Any = self._made(None)
        self._fuse_s = time.perf_counter() - started

    def start(self, first: Tensor) -> None:
        """As :meth:`Decoder.start`; the first call prepares and captures. Steps that cannot be captured are launched one by one."""
        from kvbench.fused.layer import NotFused

        begin = self._logits(first) if first.is_floating_point() else first
        try:
            self._decoder.start(begin)
        except NotFused as error:
            self._decoder.close()
            self.reason = f"steps are not captured: {error}"
            self._decoder = self._made(capture=False)
            self._decoder.start(begin)
        self.prepare_s, self.capture_s = self._fuse_s + self._decoder.prepare_s, self._decoder.capture_s
        self.flush_s = self._decoder.flush_s
        if self._decoder.uncaptured and self.runner.geometry.devices[0].type == "cuda":
            self.reason = f"steps are not captured: {self._decoder.uncaptured}"

    def _made(self, capture: bool | None) -> Any:
        from kvbench.fused.decoder import FusedDecoder

        return FusedDecoder(self.runner.model, self._state, capture=capture)

    def _steps(self, n: int) -> Tensor:
        tokens: Tensor = self._decoder.steps(n)
        return tokens

    def read_bytes(self) -> int | None:
        return int(self._state.read_bytes())

    def _folds(self) -> Sequence[tuple[Any, Fold]]:
        pairs = zip(self.runner.geometry.modules, self._state.layers, strict=True)
        return [(module, layer.fold) for module, layer in pairs if layer.fold is not None]

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
        self._state = self._decoder = None
        self._found.clear()


def decoder_for(
    session: Session, label: str, cache: KVCache, *, path: Path, reserve: int, again: Callable[[], KVCache] | None = None
) -> Decoder:
    """A decoder that goes on from ``cache``, for at most ``reserve`` more tokens.

    The fused path takes the cache's storage over: read its ledger before, and use it no more.

    Args:
        label: The cache's row, for messages.
        path: ``auto`` takes the fused path on a GPU with Triton where it knows the method's storage.
        again: Makes the cache once more, for the reference path where the fused one finds only after taking it that it cannot.

    Raises:
        UsageError: ``path`` is ``fused`` and that cannot be.
    """
    reason = {"reference": "asked for", "auto": unfit(session), "fused": ""}[path]
    if not reason:
        from kvbench.fused.layer import NotFused

        try:
            return FusedDecoding(session.runner, cache, reserve)
        except NotFused as error:
            reason = str(error)
    if path == "fused" or (_is_spent(cache) and again is None):
        raise UsageError(f"'{label}' cannot be read by the fused path: {reason}", hint="path=auto, or path=reference")
    return ReferenceDecoder(session.runner, again() if again is not None and _is_spent(cache) else cache, reason)


def unfit(session: Session) -> str:
    """Why ``auto`` does not try the fused path here, or nothing."""
    if session.loaded.device.type != "cuda":
        return "no GPU"
    if torch.version.hip is not None:
        return "not an NVIDIA GPU"
    return "triton is not installed" if find_spec("triton") is None else ""


def _is_spent(cache: KVCache) -> bool:
    """Whether the fused path has taken the layers."""
    return any(layer is None for layer in cache.layers)
