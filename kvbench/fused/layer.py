"""A cache taken over into the kernels' layout, layer by layer, for as many decode steps as there is room for.

What is stored, how it is rounded and who reads it stay the method's; only where the bytes lie changes. On a GPU
Triton kernels store and read; elsewhere plain PyTorch does (:mod:`kvbench.fused.oracle`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvbench.caches.cache import KVCache
from kvbench.caches.fold import Fold
from kvbench.caches.folding import can_fold
from kvbench.caches.layer import LayerCache
from kvbench.fused import oracle
from kvbench.fused import window as windows
from kvbench.fused.launch import Launch
from kvbench.fused.taken import Taken, taken_of
from kvbench.fused.token_tensors import NotFused, check, check_together, residual

__all__ = ["FusedLayer", "FusedState", "NotFused", "fuse"]


class FusedLayer:
    """One layer's stored tokens, and the step that adds one to each row and reads them all.

    Attributes:
        taken: The tokens.
        fold: Projections with a value basis folded in, to be used instead of the module's.
        launch: The kernels, where there is a GPU.
    """

    def __init__(self, taken: Taken, reserve: int, fold: Fold | None = None) -> None:
        self.taken, self.fold = taken, fold
        self.launch = Launch(taken, reserve) if taken.counter.device.type == "cuda" else None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store a token and attend to all.

        Args:
            q: ``[B, Hq, D]``; k: ``[B, Hkv, D]``; RoPE applied. v: ``[B, Hkv, value_dim]``.

        Returns:
            ``[B, Hq · value_dim]``.
        """
        if self.launch is not None:
            return self.launch.step(q.flatten(1), k.flatten(1), v.flatten(1))
        return self._plain(q, k, v)

    def attend_raw(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, q_norm: Tensor | None = None, k_norm: Tensor | None = None, eps: float = 0.0
    ) -> Tensor:
        """As :meth:`attend`, straight from the projections.

        Args:
            qkv: ``[B, Hq·D + Hkv·D + Hkv·value_dim]``.
            cos, sin: ``[1 or B, R]``, R ≤ D channels of each head are turned.
            q_norm, k_norm: Weights ``[D]`` of RMS norms of each head, before RoPE. eps: Theirs.
        """
        held = self.taken
        q, k, v = torch.split(qkv, [held.heads * held.head_dim, held.kv_heads * held.head_dim, held.kv_heads * held.value_dim], 1)
        if self.launch is not None:
            return self.launch.step(q, k, v, (cos, sin), None if q_norm is None or k_norm is None else (q_norm, k_norm), eps)
        q, k, v = (torch.unflatten(x, 1, (heads, -1)) for x, heads in ((q, held.heads), (k, held.kv_heads), (v, held.kv_heads)))
        if q_norm is not None and k_norm is not None:
            q, k = oracle.normed(q, q_norm, eps), oracle.normed(k, k_norm, eps)
        return self._plain(oracle.turned(q, cos, sin), oracle.turned(k, cos, sin), v)

    def _plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        held, appended = self.taken, int(self.taken.counter)
        if held.window is None:
            oracle.append(held.growing, k, v, appended)
        else:
            windows.append(held.window, k, v, appended)
        return oracle.attend(held.regions, q, appended + 1, held.scaling, held.window).flatten(1)

    def flush(self) -> None:
        """Code the window's newest keys, where there is one; due when as many as it holds have come."""
        window = self.taken.window
        if window is None:
            return
        if self.launch is not None:
            self.launch.flush(window)
        else:
            windows.flush(window, int(self.taken.counter))


class FusedState:
    """A whole cache in the kernels' layout.

    Attributes:
        layers: One a layer. counter: int32 ``[1]`` on the device, tokens appended; a decoder adds one at the end of each step.
        seen: Tokens seen when it was made: the next token's position is ``seen + counter``.
        reserve: Tokens for which there is room.
        every: Tokens after which :meth:`flush` is due; ``None``: never.
        phase: Tokens since the last flush when it was made: one is due whenever ``phase + counter`` is a multiple of ``every``.
    """

    def __init__(self, layers: Sequence[FusedLayer], counter: Tensor, seen: int, reserve: int) -> None:
        self.layers, self.counter, self.seen, self.reserve = list(layers), counter, seen, reserve
        window = self.layers[0].taken.window
        self.every = None if window is None else window.size
        self.phase = 0 if window is None else window.start % window.size

    def flush(self) -> None:
        """Work that is due after every :attr:`every` tokens; it goes by ``counter``, and done twice is done once."""
        for layer in self.layers:
            layer.flush()

    def read_bytes(self) -> int:
        """Bytes of the cache that the next step reads: what is stored, its own token included."""
        appended = int(self.counter) + 1
        return sum(layer.taken.read_bytes(appended) for layer in self.layers)


@torch.inference_mode()
def fuse(cache: KVCache, runner: Any, reserve: int) -> FusedState:
    """Take over a compressed cache, which must not be used afterwards.

    Args:
        runner: A :class:`kvbench.instruments.protocol.Runner`: its model's folded projections are read.
        reserve: Decode steps for which there is to be room.

    Raises:
        NotFused: a layer's storage has no kernel; the cache is as it was.
    """
    layers: list[LayerCache] = list(cache.layers)
    device = _one_device(runner)
    for layer in layers:
        check(layer)  # nothing is taken from a cache of which a later layer cannot be
        reserve = max(reserve, residual(layer))  # a flush may be tried before it is due
    check_together(layers)
    counter = torch.zeros(1, dtype=torch.int32, device=device)
    seen, fused = layers[0].seen, []
    for index, layer in enumerate(layers):
        fold = runner.folds.of(layer) if can_fold(layer) else None
        fused.append(fused_layer(layer, counter, reserve, fold))
        cache.layers[index] = layers[index] = layer = None  # type: ignore[assignment,call-overload]
    return FusedState(fused, counter, seen, reserve)


def _one_device(runner: Any) -> torch.device:
    devices = set(runner.geometry.devices)
    if len(devices) > 1:
        raise NotFused("the model is spread over several devices")
    device: torch.device = devices.pop()
    if device.type == "cuda" and runner.geometry.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise NotFused(f"no kernel computes in {runner.geometry.dtype}")
    return device


def fused_layer(layer: LayerCache, counter: Tensor, reserve: int, fold: Fold | None = None) -> FusedLayer:
    """One layer's storage in the kernels' layout.

    Raises:
        NotFused: it has no kernel.
    """
    return FusedLayer(taken_of(layer, counter, reserve), reserve, fold)
