"""The kernels of one layer's step, with their grids and buffers fixed, so that a graph may capture them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import e as EULER
from math import log2
from typing import Any

import torch
from torch import Tensor

from kvbench.fused.layout import DENSE as DENSE_BITS
from kvbench.fused.layout import TILE, Deal, Format
from kvbench.fused.scratch import multiprocessors, scratch
from kvbench.fused.storage import Plane, Region
from kvbench.fused.taken import Taken
from kvbench.fused.window import Window

LOG2_E = log2(EULER)


@dataclass(frozen=True)
class Tuning:
    """How one kernel is compiled and how far its work is split.

    Attributes:
        warps, stages: Of a program. programs: Counted on for one multiprocessor; registers and shared memory may let fewer run at a time.
        waves: Rounds of programs that a device is given.
        registers: Most of a thread; 0 leaves it to the compiler.
        shortest: Tokens of a part that is not split further.
    """

    warps: int
    stages: int
    programs: int
    waves: int = 2
    registers: int = 0
    shortest: int = 2 * TILE

    @property
    def options(self) -> dict[str, Any]:
        """As Triton takes them."""
        return {"num_warps": self.warps, "num_stages": self.stages} | ({"maxnreg": self.registers} if self.registers else {})


# Of those that tests/bench/bench_read.py --tune tried on an H200, at 1, 8 and 32 x 32,768 tokens.
DENSE = Tuning(warps=4, stages=3, programs=3, waves=1, shortest=TILE)
NARROW = Tuning(warps=8, stages=3, programs=3, waves=1, shortest=TILE)
EIGHT_BITS = Tuning(warps=1, stages=3, programs=6)
FOUR_BITS = Tuning(warps=1, stages=3, programs=10, registers=200)
OTHER_CODES = Tuning(warps=1, stages=3, programs=8, waves=1)
RAGGED_WAVES = 4
"""Where pairs differ in length, so that no long one is left over when the others have ended."""
MOST_PARTS = 256
"""Of a pair's tokens: bounds what is combined after them."""
_FEW_CHANNELS = 32
"""Of a head that a program combines where heads alone would leave much of the device idle."""
_AT_ONCE = 4096
"""Numbers that a program combines at once: 32 registers of a thread."""


def tuning_of(region: Region) -> Tuning:
    """What is fastest for the region's formats and lengths."""
    tuning = _tuning_of(region.keys.form, region.values.form)
    is_ragged = region.tokens < 0.95 * region.longest * len(region.held)
    return replace(tuning, waves=max(tuning.waves, RAGGED_WAVES)) if is_ragged else tuning


def _tuning_of(keys: Format, values: Format) -> Tuning:
    if keys.bits == values.bits == DENSE_BITS:
        return DENSE if values.width >= keys.width else NARROW
    if keys.bits == values.bits == 8:
        return EIGHT_BITS
    is_light = all(form.bits == 4 and form.groups <= 2 and not form.span for form in (keys, values))
    return FOUR_BITS if is_light else OTHER_CODES


class Launch:
    """Everything that :meth:`step` starts.

    Args:
        layer: What is stored. reserve: Tokens that will be appended at most.
        tunings: One a region, where others than the fastest known are wanted.
    """

    def __init__(self, layer: Taken, reserve: int, tunings: Sequence[Tuning] = ()) -> None:
        self.layer = layer
        region = layer.growing
        self.device, self.dtype = region.first.device, region.dtype
        self.pairs = len(region.held)
        self.batch, self.group = self.pairs // layer.kv_heads, layer.heads // layer.kv_heads
        self.tunings = list(tunings) or [tuning_of(region) for region in layer.regions]
        self.splits = [split_count(r, t, self.pairs, reserve, self.device) for r, t in zip(layer.regions, self.tunings, strict=True)]
        self.slots = sum(self.splits) + (layer.window is not None)
        self.columns = max(_power(self.group), 16 if any(r.is_dense for r in layer.regions) else 8)
        width = layer.value_dim
        self.part = scratch(self.device, "part", self.pairs * self.slots * self.columns * width)
        self.stat = scratch(self.device, "stat", self.pairs * self.slots * 2 * self.columns)
        self.waits = _launch_options(self.device)
        self.nothing = torch.zeros(1, dtype=self.dtype, device=self.device)

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, turn: tuple[Tensor, Tensor] | None = None, norms: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Rows ``[B, Hq·D]``, ``[B, Hkv·D]`` and ``[B, Hkv·value_dim]`` → ``[B, Hq·value_dim]``."""
        return self.read(self._append(q, k, v, turn, norms, eps))

    def read(self, queries: Tensor) -> Tensor:
        """Queries ``[B, Hq·D]``, or by heads, over all that is stored, the step's own token included → ``[B, Hq·value_dim]``."""
        layer, slot = self.layer, 0
        for region, tuning, splits in zip(layer.regions, self.tunings, self.splits, strict=True):
            (self._split_dense if region.is_dense else self._split)(queries, region, tuning, splits, slot)
            slot += splits
        if layer.window is not None:
            self._read_window(queries, layer.window, slot)
        return self._combine(queries)

    def _append(
        self, q: Tensor, k: Tensor, v: Tensor, turn: tuple[Tensor, Tensor] | None, norms: tuple[Tensor, Tensor] | None, eps: float
    ) -> Tensor:
        from kvbench.fused.kernels.write import append

        layer, region = self.layer, self.layer.growing
        out = torch.empty(self.batch, layer.heads, layer.head_dim, dtype=q.dtype, device=q.device)
        cos, sin = turn or (self.nothing, self.nothing)
        q_weight, k_weight = norms or (self.nothing, self.nothing)
        rows = (q.stride(0), k.stride(0), v.stride(0), cos.stride(0) if cos.ndim == 2 and cos.shape[0] > 1 else 0)
        shape = {"HEADS": layer.heads, "KV_HEADS": layer.kv_heads, "D": layer.head_dim, "DV": layer.value_dim, "R": cos.shape[-1]}
        shape |= {"ROPE": turn is not None, "NORM": norms is not None, "T": TILE} | _format("V", region.values, region.values.form.column)
        shape |= {"num_warps": 1, "enable_fp_fusion": False, **self.waits}  # what is rounded twice in the model is rounded twice here
        if layer.window is not None:
            self._append_to_window(layer.window, (q, k, v, cos, sin, q_weight, k_weight, out), eps, rows, shape)
            return out
        append[(self.batch, layer.heads + 2 * layer.kv_heads)](
            q, k, v, cos, sin, q_weight, k_weight, out, *self._side(region.keys), *self._side(region.values),
            region.first, region.held, layer.counter, eps, *rows, *self._strides(region), DV_WIDE=_power(layer.value_dim),
            **_format("K", region.keys, region.keys.form.row), **shape,
        )  # fmt: skip
        return out

    def _append_to_window(
        self, window: Window, given: tuple[Tensor, ...], eps: float, rows: tuple[int, ...], shape: dict[str, Any]
    ) -> None:
        from kvbench.fused.kernels.window import append

        layer, coded = self.layer, window.coded
        append[(self.batch, layer.heads + 2 * layer.kv_heads)](
            *given, window.keys, window.values, *self._side(coded.values), coded.first, window.held, layer.counter, eps, *rows, self.pairs,
            self._strides(coded)[1], SIZE=window.size, **shape,
        )  # fmt: skip

    def _read_window(self, q: Tensor, window: Window, slot: int) -> None:
        from kvbench.fused.kernels.window import read

        layer = self.layer
        read[(self.pairs,)](
            q, window.keys, window.values, window.held, layer.counter, self.part, self.stat, layer.scaling * LOG2_E, self.slots, slot,
            self.pairs, GROUP=self.group, N=self.columns, ROWS=max(16, self.columns), D=layer.head_dim, DV=layer.value_dim, T=TILE,
            SIZE=window.size, num_warps=4, num_stages=2, **self.waits,
        )  # fmt: skip

    def flush(self, window: Window) -> None:
        """Code the newest keys of a window; due when it holds as many as it may."""
        from kvbench.fused.kernels.window import flush

        keys = window.coded.keys
        form = _format("K", keys, keys.form.row)
        flush[(self.pairs, window.size // keys.form.span)](
            window.keys, *self._side(keys), window.coded.first, window.held, self.layer.counter, self.pairs, D=self.layer.head_dim,
            SIZE=window.size, SPAN=keys.form.span, **{name[2:]: value for name, value in form.items() if name != "K_GROUPS"}, num_warps=4,
            enable_fp_fusion=False,
        )  # fmt: skip

    def _split(self, q: Tensor, region: Region, tuning: Tuning, splits: int, slot: int) -> None:
        from kvbench.fused.kernels.read import split

        layer = self.layer
        split[(self.pairs, splits)](
            q, *self._side(region.keys), *self._side(region.values), region.first, region.held, layer.counter, self.part, self.stat,
            layer.scaling * LOG2_E, self.slots, slot, *self._strides(region), GROUP=self.group, N=self.columns, D=layer.head_dim,
            DV=layer.value_dim, T=TILE, GROWS=region.grows, FAST=self._is_fast, K_SPAN=region.keys.form.span, LAG=region.lag,
            **_format("K", region.keys, region.keys.form.row), **_format("V", region.values, region.values.form.column), **self.waits,
            **tuning.options,
        )  # fmt: skip

    def _split_dense(self, q: Tensor, region: Region, tuning: Tuning, splits: int, slot: int) -> None:
        from kvbench.fused.kernels.dense import split_dense

        layer = self.layer
        split_dense[(self.pairs, splits)](
            q, region.keys.numbers, region.values.numbers, region.first, region.held, layer.counter, self.part, self.stat,
            layer.scaling * LOG2_E, self.slots, slot, GROUP=self.group, N=self.columns, D=layer.head_dim, DV=layer.value_dim,
            DV_WIDE=_power(layer.value_dim), T=TILE, GROWS=region.grows,
            **self.waits, **tuning.options,
        )  # fmt: skip

    def _combine(self, like: Tensor) -> Tensor:
        from kvbench.fused.kernels.parts import combine

        layer = self.layer
        out = torch.empty(self.batch, layer.heads * layer.value_dim, dtype=like.dtype, device=like.device)
        heads, wide = self.batch * layer.heads, _power(layer.value_dim)
        few = heads < 2 * multiprocessors(self.device) and wide > _FEW_CHANNELS
        channels = _FEW_CHANNELS if few else wide
        combine[(heads, wide // channels)](
            self.part, self.stat, out, self.slots, GROUP=self.group, N=self.columns, DV=layer.value_dim, CHANNELS=channels,
            AT_ONCE=min(_AT_ONCE // channels, _power(self.slots)), num_warps=4 if self.slots > 16 else 1, **self.waits,
        )  # fmt: skip
        return out

    def _side(self, plane: Plane) -> tuple[Tensor, Tensor, Tensor]:
        scales = self.nothing if plane.scales is None else plane.scales
        return plane.numbers, scales, self.nothing if plane.zeros is None else plane.zeros

    @staticmethod
    def _strides(region: Region) -> tuple[int, int]:
        return tuple(0 if p.scales is None else p.scales.stride(0) for p in (region.keys, region.values))  # type: ignore[return-value]

    @property
    def _is_fast(self) -> bool:
        """Whether codes become bfloat16 by instructions that compute capability 9.0 brought."""
        is_new = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) >= (9, 0)
        return is_new and self.dtype == torch.bfloat16


def _launch_options(device: torch.device) -> dict[str, Any]:
    from kvbench.fused.kernels.waiting import launch_options

    return launch_options(device)


def _format(side: str, plane: Plane, deal: Deal) -> dict[str, Any]:
    form = plane.form
    named = {"BITS": form.bits, "GROUPS": form.groups, "SYMMETRIC": form.symmetric, "PAIRED": plane.paired, "WORD": deal.word}
    return {f"{side}_{name}": value for name, value in named.items()}


def _power(n: int) -> int:
    """The least power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()


def split_count(region: Region, tuning: Tuning, pairs: int, reserve: int, device: torch.device) -> int:
    """Parts of each pair's tokens: as many programs as fill the device, none shorter than is worth starting."""
    longest = region.longest + (reserve if region.grows else 0)
    wanted = tuning.waves * tuning.programs * multiprocessors(device) // pairs
    parts = max(1, min(wanted, longest // tuning.shortest, MOST_PARTS))
    tiles = -(-longest // TILE)
    return -(-tiles // -(-tiles // parts))  # whole tiles each: no program is left without any
