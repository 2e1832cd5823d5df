"""A cache taken over into the kernels' layout, layer by layer, for as many decode steps as there is room for.

What is stored, how it is rounded and who reads it stay the method's; only where the bytes lie changes. On a GPU
Triton kernels store and read; elsewhere plain PyTorch does (:mod:`kvbench.fused.oracle`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvbench.caches.cache import KVCache
from kvbench.caches.folding import Fold, can_fold
from kvbench.caches.layer import LayerCache
from kvbench.fused import oracle
from kvbench.fused import window as windows
from kvbench.fused.sources import NotFused, Windowed, check, check_together, is_ragged, residual, sources_of, windowed
from kvbench.fused.storage import Region, region_of
from kvbench.fused.window import Window, window_of

if TYPE_CHECKING:
    from kvbench.fused.launch import Launch

__all__ = ["FusedLayer", "FusedState", "NotFused", "fuse"]


class FusedLayer:
    """One layer's stored tokens, and the step that adds one to each row and reads them all.

    Attributes:
        heads, kv_heads, head_dim: Query heads, KV heads, channels of a key.
        value_dim: Channels of a value: the head size, or the rank where ``fold`` is set.
        fold: Projections with a value basis folded in, to be used instead of the module's.
        regions: What is stored; one of them grows.
        window: The newest tokens, where they become codes later.
        counter: int32 ``[1]``, tokens appended so far; shared by all layers, and advanced by who decodes.
    """

    def __init__(
        self, layer: LayerCache, regions: Sequence[Region], counter: Tensor, reserve: int, fold: Fold | None, window: Window | None = None
    ) -> None:  # fmt: skip
        context = layer.context
        self.heads, self.kv_heads, self.head_dim = context.heads, context.kv_heads, context.head_dim
        self.value_dim = regions[0].values.form.width
        self.scaling, self.fold, self.counter = layer.scaling, fold, counter
        self.regions = list(regions)
        self.growing = next(region for region in regions if region.grows)
        self.window = window
        self.launch: Launch | None = None
        if counter.device.type == "cuda":
            from kvbench.fused.launch import Launch

            self.launch = Launch(self, reserve)

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
        q, k, v = torch.split(qkv, [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.value_dim], 1)
        if self.launch is not None:
            return self.launch.step(q, k, v, (cos, sin), None if q_norm is None or k_norm is None else (q_norm, k_norm), eps)
        q, k, v = (torch.unflatten(x, 1, (heads, -1)) for x, heads in ((q, self.heads), (k, self.kv_heads), (v, self.kv_heads)))
        if q_norm is not None and k_norm is not None:
            q, k = oracle.normed(q, q_norm, eps), oracle.normed(k, k_norm, eps)
        return self._plain(oracle.turned(q, cos, sin), oracle.turned(k, cos, sin), v)

    def _plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        appended = int(self.counter)
        if self.window is None:
            oracle.append(self.growing, k, v, appended)
        else:
            windows.append(self.window, k, v, appended)
        return oracle.attend(self.regions, q, appended + 1, self.scaling, self.window).flatten(1)

    def flush(self) -> None:
        """Code the window's newest keys, where there is one; due when as many as it holds have come."""
        if self.window is None:
            return
        if self.launch is not None:
            self.launch.flush(self.window)
        else:
            windows.flush(self.window, int(self.counter))


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
        window = self.layers[0].window
        self.every = None if window is None else window.size
        self.phase = 0 if window is None else window.start % window.size

    def flush(self) -> None:
        """Work that is due after every :attr:`every` tokens; it goes by ``counter``, and done twice is done once."""
        for layer in self.layers:
            layer.flush()

    def read_bytes(self) -> int:
        """Bytes of the cache that the next step reads: what is stored, its own token included."""
        appended = int(self.counter) + 1
        regions = sum(region.read_bytes(appended) for layer in self.layers for region in layer.regions)
        return regions + sum(layer.window.read_bytes(appended) for layer in self.layers if layer.window is not None)


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
        fold = runner.folds.of(layer) if can_fold_values(layer) else None
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
    behind = windowed(layer)
    if behind is not None:
        coded, window = window_regions(layer, behind, reserve)
        return FusedLayer(layer, [coded], counter, reserve, fold, window)
    return FusedLayer(layer, regions_of(layer, reserve), counter, reserve, fold)


def window_regions(layer: LayerCache, behind: Windowed, reserve: int) -> tuple[Region, Window]:
    """What a layer with a dense residual stores: codes, and the window of its newest tokens."""
    pairs = layer.batch * layer.context.kv_heads
    coded = region_of([behind.coded], pairs, reserve, grows=True, lag=behind.newest)
    window = window_of(*behind.dense, behind.size, coded)
    coded.lag = behind.size
    return coded, window


def regions_of(layer: LayerCache, reserve: int) -> list[Region]:
    """What a layer stores, in the kernels' layout, with room for ``reserve`` tokens more.

    Raises:
        NotFused: it has no kernel.
    """
    cells = [sources_of(cell) for row in layer.cells for cell in row] if is_ragged(layer) else [sources_of(layer)]
    pairs = layer.batch * layer.context.kv_heads
    return [
        region_of([(cell[i].keys, cell[i].values) for cell in cells], pairs, reserve, grows=source.grows)
        for i, source in enumerate(cells[0])
    ]


def can_fold_values(layer: LayerCache) -> bool:
    """Whether values come as coefficients through folded projections."""
    from kvbench.caches.lowrank import LowRankLayer

    return isinstance(layer, LowRankLayer) and can_fold(layer)
