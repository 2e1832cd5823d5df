"""Every kernel of the fused path against plain PyTorch: codes bit for bit, attention against float64 over what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from interpreting import DEVICE, INTERPRETED
from torch import Tensor

from kvbench.caches.layer import LayerContext
from kvbench.fused import launch, oracle
from kvbench.fused import window as windows
from kvbench.fused.layer import FusedLayer, fused_layer
from kvbench.fused.layout import TILE
from kvbench.methods.base import resolve
from kvbench.spec import EvaluatorSpec, MethodSpec, RunSpec

TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 1.5e-2}
"""Relative, in the norm, over 128 tokens; rounding of the operands of a product, of probabilities and of what comes out."""


@dataclass(frozen=True)
class Case:
    """A method over ``batch`` rows of ``tokens`` tokens, and ``steps`` steps after them in ``splits`` parts."""

    method: str
    heads: int
    kv_heads: int
    head_dim: int
    tokens: int
    dtype: torch.dtype = torch.float32
    batch: int = 2
    steps: int = 3
    splits: int = 3

    def __str__(self) -> str:
        return f"{self.method}-{self.heads}of{self.kv_heads}x{self.head_dim}-{self.tokens}-{str(self.dtype)[6:]}"


SMALL = [
    Case("baseline", 6, 2, 64, 77), Case("int8", 6, 2, 64, 77), Case("int4", 6, 2, 64, 131), Case("adakv", 6, 2, 64, 131),
    Case("adakv+int4", 6, 2, 64, 131),
    *(Case(*case, batch=1, steps=2) for case in (
        ("baseline", 2, 2, 64, 200), ("int8:group=32", 4, 1, 64, 131), ("int8", 9, 3, 64, 131, torch.float16), ("int4", 12, 1, 64, 131),
        ("int4:group=64", 7, 1, 128, 200), ("int4:symmetric=true", 8, 1, 64, 65), ("int4:k_bits=2,v_bits=2", 3, 1, 64, 131),
        ("int4:k_bits=2,v_bits=2,group=64", 4, 1, 128, 257), ("int4:k_bits=8,v_bits=2", 3, 1, 64, 131), ("int4:k_bits=16", 3, 1, 64, 70),
        ("int4:v_bits=16", 3, 1, 64, 70), ("snapkv", 6, 2, 64, 131), ("snapkv+int4", 6, 2, 64, 131), ("hybrid_8x", 8, 2, 64, 300),
    )),
]  # fmt: skip
"""Several rows of several heads where a kernel is another; of its parameters one row, and steps with and without an earlier one."""
METHODS = (
    "baseline", "int8", "int4", "int4:group=64", "int4:k_bits=2,v_bits=2", "int4:k_bits=2,v_bits=2,group=64", "adakv+int4", "adakv",
    "kivi:bits=2", "kivi:bits=4",
)  # fmt: skip
RESERVE = 256
"""Tokens for which there is room; a flush may be tried 128 ahead."""
SIZES = ((1, 64, 1003, 1), (3, 64, 4099, 7), (4, 128, 2048, 16), (7, 128, 5001, 9), (8, 64, 3333, 5), (7, 128, 777, 3))
WINDOWED = [
    Case("kivi:bits=2", 6, 2, 64, 100, steps=2), Case("kivi:bits=2", 6, 2, 64, 126, batch=1),
    Case("kivi:bits=4", 3, 1, 64, 300, batch=1, steps=2), Case("kivi:bits=2", 4, 1, 128, 383, batch=1, steps=2),
    Case("kivi:bits=4,residual=64,symmetric=true", 4, 1, 128, 254, batch=1), Case("kivi:bits=8,group=64", 4, 1, 64, 256, batch=1, steps=2),
    Case("snapkv+kivi:bits=4", 4, 1, 64, 520, batch=1, steps=2),
]  # fmt: skip
"""Around the tokens at which keys are flushed."""
LARGE = [
    Case(method, group * 2, 2, size, tokens, dtype, batch=3, splits=splits)
    for i, method in enumerate(METHODS)
    for dtype, (group, size, tokens, splits) in (
        (torch.bfloat16, SIZES[i % 6]), (torch.bfloat16, SIZES[(i + 3) % 6]), (torch.bfloat16, SIZES[(i + 2) % 6]),
        (torch.float32, SIZES[(i + 4) % 6]),
    )
]  # fmt: skip


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """What ``torch.empty`` gives is NaN, so that an element that is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


def compressed(case: Case, seed: int) -> Any:
    """A layer that has compressed a random prompt."""
    spec = RunSpec(methods=(MethodSpec.parse(case.method),), evaluators=(EvaluatorSpec("speed"),), context=case.tokens, samples=1)
    layer = resolve(spec.methods[0], spec).layer(LayerContext(0, 1, case.heads, case.kv_heads, case.head_dim, case.dtype))
    generator = torch.Generator(DEVICE).manual_seed(seed)
    shapes = [(case.batch, heads, case.tokens, case.head_dim) for heads in (case.heads, case.kv_heads, case.kv_heads)]
    q, k, v = (torch.randn(shape, generator=generator, device=DEVICE).to(case.dtype) for shape in shapes)
    layer.forward(q, k, v, case.head_dim**-0.5)
    return layer


def tokens_of(case: Case, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Projections and rotary tables of every step."""
    generator = torch.Generator(DEVICE).manual_seed(seed + 1)
    width = (case.heads + 2 * case.kv_heads) * case.head_dim
    for _ in range(case.steps):
        angles = torch.randn(1, case.head_dim // 2, generator=generator, device=DEVICE).repeat(1, 2)
        rows = torch.randn(case.batch, width, generator=generator, device=DEVICE)
        yield rows.to(case.dtype), angles.cos().to(case.dtype), angles.sin().to(case.dtype)


def fused(layer: Any, case: Case, *, kernels: bool) -> FusedLayer:
    """The layer with or without kernels, each with regions of its own."""
    made = fused_layer(layer, torch.zeros(1, dtype=torch.int32, device=DEVICE), RESERVE)
    made.launch = launch.Launch(made.taken, RESERVE) if kernels else None
    return made


def to_cpu(value: Any) -> Any:
    """Regions and planes with their tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if is_dataclass(value) and not isinstance(value, type):
        moved = deepcopy(value)
        for field in fields(value):
            object.__setattr__(moved, field.name, to_cpu(getattr(value, field.name)))
        return moved
    return value


def check(case: Case, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "split_count", lambda region, *_: max(1, min(case.splits, region.longest // TILE)))
    layer = compressed(case, seed)
    tried, plain = fused(layer, case, kernels=True), fused(layer, case, kernels=False)
    taken = tried.taken
    held = replace(plain.taken, regions=[to_cpu(region) for region in plain.taken.regions], window=to_cpu(plain.taken.window))
    if held.window is not None:
        held.window.coded = held.growing
    for rows, cos, sin in tokens_of(case, seed):
        appended = int(taken.counter)
        out = tried.attend_raw(rows, cos, sin).double().cpu()
        q, k, v = (x.unflatten(1, (-1, case.head_dim)) for x in _split(rows.cpu(), case))
        q, k = oracle.turned(q, cos.cpu(), sin.cpu()), oracle.turned(k, cos.cpu(), sin.cpu())
        if held.window is None:
            oracle.append(held.growing, k, v, appended)
        else:
            windows.append(held.window, k, v, appended)
        exact = oracle.attend(held.regions, q.double(), appended + 1, held.scaling, held.window).flatten(1)
        error = float((out - exact).norm() / exact.norm())
        # The mean of n random values shrinks by √n, the rounding of the sums that it is the difference of does not.
        allowed = TOLERANCE[case.dtype] * max(1.0, case.tokens / 128) ** 0.5
        assert error < allowed, f"{case}: {error:.1e}"  # not NaN either
        taken.counter.add_(1)
        if held.window is not None and (held.window.start + appended + 1) % held.window.size == 0:
            tried.flush()
            windows.flush(held.window, appended + 1)
    for ours, theirs in zip(taken.regions, held.regions, strict=True):
        for mine, other in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            assert torch.equal(mine.numbers.cpu(), other.numbers)
            assert mine.scales is None or other.scales is None or torch.equal(mine.scales.cpu(), other.scales)


def _split(rows: Tensor, case: Case) -> tuple[Tensor, ...]:
    widths = [heads * case.head_dim for heads in (case.heads, case.kv_heads, case.kv_heads)]
    return rows.split(widths, 1)


@pytest.mark.parametrize("case", [*SMALL, *WINDOWED], ids=str)
def test_a_step_stores_and_reads_as_plain_pytorch_does(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, 0, monkeypatch)


@pytest.mark.parametrize("case", [case for case in SMALL if case.method == "baseline"], ids=str)
def test_few_heads_are_put_together_by_several_programs_each(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(launch, "_FEW_CHANNELS", 16)
    check(case, 0, monkeypatch)


@pytest.mark.parametrize(("tokens", "wanted", "parts"), [(40, 10, 1), (640, 10, 10), (700, 10, 6), (6400, 30, 25), (64 * 400, 1000, 200)])
def test_no_part_is_left_without_tokens(tokens: int, wanted: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole tiles of 64 each: 11 tiles in 10 parts would be two each, and four parts without any."""
    monkeypatch.setattr(launch, "multiprocessors", lambda device: wanted)
    region: Any = SimpleNamespace(longest=tokens, grows=False)
    tuning = launch.Tuning(warps=1, stages=1, programs=1, waves=1, shortest=TILE)
    found = launch.split_count(region, tuning, 1, 0, torch.device(DEVICE))
    tiles = -(-tokens // TILE)
    assert found == parts
    assert (found - 1) * -(-tiles // found) < tiles


@pytest.mark.parametrize("tokens", [100, 300])
def test_a_flush_that_is_tried_ahead_changes_nothing_that_is_read(tokens: int) -> None:
    """A graph of it is captured before it is due."""
    case = Case("kivi:bits=4", 4, 2, 64, tokens, batch=1, steps=2)
    layer = compressed(case, 0)
    tried, untried = fused(layer, case, kernels=True), fused(layer, case, kernels=True)
    taken = tried.taken
    assert taken.window is not None
    due = -tokens % taken.window.size
    taken.counter.fill_(due)
    tried.flush()
    taken.counter.fill_(0)
    for rows, cos, sin in tokens_of(case, 0):
        assert torch.equal(tried.attend_raw(rows, cos, sin), untried.attend_raw(rows, cos, sin))
        for one in (tried, untried):
            one.taken.counter.add_(1)


@pytest.mark.skipif(INTERPRETED, reason="there is no GPU; the interpreter runs the small cases")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_on_a_gpu_at_all_group_sizes(case: Case, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, seed, monkeypatch)


def test_norms_come_before_the_rotation() -> None:
    """As in Qwen3: RMS norms of each head's queries and keys."""
    case = Case("baseline", 4, 2, 64, 40)
    layer = compressed(case, 0)
    tried, plain = fused(layer, case, kernels=True), fused(layer, case, kernels=False)
    weights = torch.rand(2, case.head_dim, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    for rows, cos, sin in tokens_of(case, 0):
        ours = tried.attend_raw(rows, cos, sin, weights[0], weights[1], 1e-6)
        theirs = plain.attend_raw(rows, cos, sin, weights[0], weights[1], 1e-6)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        for one in (tried, plain):
            one.taken.counter.add_(1)


def test_a_step_done_again_leaves_what_one_leaves() -> None:
    """A graph is captured after steps that do not count: their slots are written once more."""
    case = Case("int4", 6, 2, 64, 131, batch=1)
    layer = compressed(case, 0)
    once, twice = (fused(layer, case, kernels=True) for _ in range(2))
    (first, cos, sin), (second, *_), _ = tokens_of(case, 0)
    once.attend_raw(second, cos, sin)
    twice.attend_raw(first, cos, sin)
    twice.attend_raw(second, cos, sin)
    for ours, theirs in zip(once.taken.regions, twice.taken.regions, strict=True):
        assert torch.equal(ours.keys.numbers, theirs.keys.numbers)
        assert torch.equal(ours.values.numbers, theirs.values.numbers)
