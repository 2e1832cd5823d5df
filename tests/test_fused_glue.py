"""A decode step's norms, gates and products: kernels, in Triton's interpreter, and plain forms against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import interpreting  # before the kernels: it says where they run
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.errors import UnsupportedModel
from kvbench.fused import choice, glue, plain_step
from kvbench.fused.kernels import glue as kernels
from kvbench.fused.kernels import linear as products
from kvbench.fused.kernels.linear import Tile

DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-6


@pytest.fixture(autouse=True)
def _interpreter_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6's interpreter cuts float32 off to bfloat16, where a GPU rounds to nearest even: here it rounds too."""
    if not interpreting.INTERPRETED:
        return
    from triton.runtime import interpreter

    converted = interpreter._convert_float

    def rounded(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source.name, target.name) == ("fp32", "bf16"):
            numbers = torch.from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16)
            return numbers.view(torch.uint16).numpy().reshape(data.shape)
        return converted(data, source, target, mode)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Seeded normal numbers, exactly representable in the dtype."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)
    return numbers.to(dtype).to(interpreting.DEVICE)


def exact_gate(gate_up: Tensor, activation: str, dtype: torch.dtype) -> Tensor:
    """The gate in float64, its activation and its result rounded to the dtype."""
    gate, up = gate_up.double().chunk(2, -1)
    act = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    return (act.to(dtype).double() * up).to(dtype).double()


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor | None, activation: str, stream: Tensor | None) -> Tensor:
    """The same in float64, rounded only where Hugging Face's modules round."""
    dtype = x.dtype
    wide = x.double()
    if norm is not None:
        wide = (wide * (wide.square().mean(-1, keepdim=True) + EPS).rsqrt()).to(dtype).double()
        wide = (wide * norm.double()).to(dtype).double()
    y = wide @ weight.double().T
    y = (y if bias is None else y + bias.double()).to(dtype).double()
    if activation:
        y = exact_gate(y, activation, dtype)
    return y if stream is None else (stream.double() + y).to(dtype).double()


def assert_close(found: Tensor, expected: Tensor, size: Tensor | None = None) -> None:
    """Equal to two roundings of the dtype; in 16 bits equal, but for the few that a sum in float32 rounds the other way.

    ``size``, where it is not the result's own: of what was rounded on the way.
    """
    step = max(torch.finfo(found.dtype).eps, 2e-6)  # float32 sums of a hundred numbers
    size = expected.abs() if size is None else size
    assert ((found.double() - expected).abs() <= 2 * step * size.clamp_min(1.0)).all()
    if found.element_size() == 2:
        assert int((found.double() != expected).sum()) <= max(1, expected.numel() // 25)


CASES = [
    pytest.param(False, False, "", False, id="linear"),
    pytest.param(False, True, "", False, id="bias"),
    pytest.param(True, True, "", False, id="norm-bias"),
    pytest.param(True, False, "silu", False, id="norm-silu"),
    pytest.param(True, True, "gelu_tanh", False, id="norm-bias-gelu"),
    pytest.param(False, True, "", True, id="bias-add"),
]


def fenced(weight: Tensor) -> Tensor:
    """The same before memory that nobody may read: NaN."""
    return torch.cat([weight, torch.full_like(weight[:1], float("nan"))])[:-1]


def operands(rows: int, n: int, K: int, dtype: torch.dtype, case: tuple[bool, bool, str, bool]) -> dict[str, Tensor | None]:
    """What a case needs, others None."""
    norms, has_bias, activation, adds = case
    outputs = 2 * n if activation else n
    return {
        "x": draw(rows, K, dtype=dtype),
        "weight": fenced(draw(outputs, K, dtype=dtype, seed=1) / 8),
        "bias": draw(outputs, dtype=dtype, seed=2) if has_bias else None,
        "norm": draw(K, dtype=dtype, seed=3) if norms else None,
        "stream": draw(rows, n, dtype=dtype, seed=4) if adds else None,
    }


@pytest.mark.parametrize(("norms", "has_bias", "activation", "adds"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "K", "tile"), [(77, 96, Tile(4, 32, 1)), (16, 64, Tile(8, 32, 2)), (5, 99, Tile(8, 64, 1))])
def test_one_row(norms: bool, has_bias: bool, activation: str, adds: bool, dtype: torch.dtype, n: int, K: int, tile: Tile) -> None:
    """Odd widths and whole ones, more outputs than a tile's and fewer."""
    given = operands(1, n, K, dtype, (norms, has_bias, activation, adds))
    x, weight, bias, norm, stream = given.values()
    expected = exact(x, weight, bias, norm, activation, stream)
    found = products.product(tile, x, weight, bias, norm=(norm, EPS) if norms else None, activation=activation, stream=stream)
    assert found.shape == (1, n)
    assert found.dtype == dtype
    assert (found is stream) == adds
    assert_close(found, expected)


ROWS_TILES = [
    pytest.param(Tile(16, 64, 4, 3), 1, id="a tile a program"),
    pytest.param(Tile(16, 32, 4, 3, 1), 3, id="three programs"),
    pytest.param(Tile(32, 32, 4, 2, 1), 7, id="seven programs"),
    pytest.param(Tile(64, 32, 4, 2, 1), 5, id="more programs than tiles"),
]


ROWS_CASES = [(False, "", False), (True, "silu", False), (True, "", True)]
ROWS = [
    pytest.param(*ROWS_CASES[(i + j) % 3], rows, width, *tile.values, id=f"{rows}x{width}-{tile.id}")
    for i, tile in enumerate(ROWS_TILES)
    for j, (rows, width) in enumerate([(2, 96), (5, 99), (17, 160)])
]
"""Every tile with every number of rows, with every bias, gate and sum: what is left out are threes of them."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16 if interpreting.INTERPRETED else torch.bfloat16])
@pytest.mark.parametrize(("has_bias", "activation", "adds", "rows", "K", "tile", "programs"), ROWS)
def test_several_rows(
    has_bias: bool, activation: str, adds: bool, dtype: torch.dtype, rows: int, K: int, tile: Tile, programs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Rows padded to a tile of the tensor cores, blocks shared out among programs; the interpreter has no products of bfloat16.

    Twice: what programs use to meet is left as it was found.
    """
    monkeypatch.setattr(products, "multiprocessors", lambda device: programs)
    given = operands(rows, 77, K, dtype, (False, has_bias, activation, adds))
    x, weight, bias, _, stream = given.values()
    expected = exact(x, weight, bias, None, activation, stream)
    size = None
    if activation:  # either factor's rounding is multiplied with the other
        gates, ups = exact(x, weight, bias, None, "", None).chunk(2, -1)
        size = gates.abs() + ups.abs()
    room = products.room_for(tile, rows, weight)
    room.sums.fill_(float("nan"))
    for _ in range(2):
        out = None if stream is None else stream.clone()
        found = products.product(tile, x, weight, bias, activation=activation, stream=out, room=room)
        assert found.shape == (rows, 77)
        assert_close(found, expected, size)
        assert not room.arrivals.any()


def test_a_head_of_more_blocks_than_32_bits_count_is_left_to_the_library() -> None:
    """(8,000 programs + 1) · 384,000 blocks would wrap around; shared by 132 programs the same weight does not."""
    wide, usual = torch.empty(256000, 12288, device="meta"), torch.empty(152064, 3584, device="meta")
    whole, shared = Tile(32, 256, 4, 6), Tile(128, 128, 4, 4, 1)
    assert not products.can_deal(whole, 32, wide)
    assert products.can_deal(whole, 1, wide)
    assert products.can_deal(whole, 32, usual)
    assert products.can_deal(shared, 32, wide)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_delta", [False, True])
def test_add_norm(dtype: torch.dtype, has_delta: bool) -> None:
    """The kernel equals the plain form: the stream exactly, its norm to the order of one sum."""
    stream, delta = draw(3, 77, dtype=dtype), draw(3, 77, dtype=dtype, seed=1) if has_delta else None
    weight = draw(77, dtype=dtype, seed=2)
    plain_stream = stream.clone()
    expected = plain_step.add_norm(plain_stream, delta, weight, EPS)
    found = kernels.add_norm(stream, delta, weight, EPS)
    assert torch.equal(stream, plain_stream)
    assert_close(found, expected.double())


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # whose infinity is wanted: the gate is then 0
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", list(plain_step.ACTIVATIONS))
def test_gated(dtype: torch.dtype, activation: str) -> None:
    """Over more than one block, large and negative gates included; the plain form's GELU, in float32, cancels far below zero."""
    gate_up = draw(3, 2 * 1100, dtype=dtype) * 4
    gate_up[0, :2] = torch.tensor([80.0, -80.0])
    found, expected = kernels.gated(gate_up, activation), exact_gate(gate_up, activation, dtype)
    assert_close(found, expected)
    assert (plain_step.gated(gate_up, activation).double() - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_plain_forms_are_hugging_faces(dtype: torch.dtype, tiny_config: Callable[[str], dict[str, Any]]) -> None:
    """Bit for bit where they run in the same order: norm, gate and products of a decoder layer's second half."""
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm

    torch.manual_seed(0)
    mlp, norm = Qwen2MLP(Qwen2Config(**tiny_config("qwen2"))).to(dtype), Qwen2RMSNorm(64, EPS).to(dtype)
    stream = draw(2, 64, dtype=dtype).cpu()
    with torch.no_grad():
        norm.weight.copy_(draw(64, dtype=dtype, seed=1))
        assert torch.equal(glue.add_norm(stream.clone(), None, norm.weight, EPS), norm(stream))
        expected = stream + mlp(norm(stream))
        merged = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        y = glue.norm_gated_for(norm.weight, EPS, merged, None, "silu", 2)(stream)
        glue.add_linear_for(mlp.down_proj.weight, None, 2)(y, stream)
    assert_close(stream, expected.double())


@pytest.mark.parametrize("rows", [1, 3])
def test_operations_on_the_cpu_are_plain(rows: int) -> None:
    """Each operation equals its formula, whatever rows it was made for, and says which way it takes."""
    dtype = torch.float64
    x, weight, bias, norm = draw(rows, 96, dtype=dtype), draw(78, 96, dtype=dtype), draw(78, dtype=dtype), draw(96, dtype=dtype)
    wide = plain_step.rms_norm(x, norm, EPS)
    linear = glue.norm_linear_for(norm, EPS, weight, bias, 1)
    assert linear.choice.name == glue.LIBRARY
    assert torch.allclose(linear(x), wide @ weight.T + bias)
    gate, up = (wide @ weight.T).chunk(2, -1)
    assert torch.allclose(glue.norm_gated_for(norm, EPS, weight, None, "silu", 1)(x), F.silu(gate) * up)
    stream = draw(rows, 78, dtype=dtype)
    expected = stream + x @ weight.T
    assert torch.allclose(glue.add_linear_for(weight, None, 1)(x, stream), expected)
    assert torch.allclose(stream, expected)


def layer_half(dtype: torch.dtype, rows: int, width: int = 40, inner: int = 21) -> dict[str, Any]:
    """A norm, a gated product and a product that is added to the stream, as operations and as what they are made of."""
    norm, bias = draw(width, dtype=dtype, seed=1), draw(width, dtype=dtype, seed=2)
    merged, down = draw(2 * inner, width, dtype=dtype, seed=3) / 8, draw(width, inner, dtype=dtype, seed=4) / 8
    return {
        "gate_up": glue.norm_gated_for(norm, EPS, merged, None, "silu", rows),
        "down": glue.add_linear_for(down, bias, rows),
        "exact": lambda x: exact(exact(x, merged, None, norm, "silu", None).to(dtype), down, bias, None, "", x),
    }


@pytest.mark.parametrize(("dtype", "rows"), [(torch.bfloat16, 1), (torch.float32, 1), (torch.float16, 3)])
def test_every_way_of_an_operation_agrees(dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed against the library's product gives the same, and the way chosen is the one that runs."""
    tried: list[str] = []

    def choose_last(
        key: object, ways: dict[str, choice.Way], weights: list[Tensor], device: object, *, reset: Callable[[], object] | None
    ) -> choice.Choice:
        reset = reset or (lambda: None)
        names = list(ways)
        for name in names:
            reset()
            reference = ways[names[0]](weights[0]).clone()
            reset()
            assert choice._agrees("product", name, lambda way=ways[name]: way(weights[0]), reference), name  # type: ignore[misc]
        tried.extend(names)
        return choice.Choice(names[-1])

    monkeypatch.setattr(glue, "takes", lambda *tensors: True)
    monkeypatch.setattr(glue, "fastest", choose_last)
    half = layer_half(dtype, rows)
    assert len(tried) == 2 * (1 + len(products.tiles(rows, 40, dtype, gated=True)))
    assert half["down"].choice.name.startswith("triton")
    monkeypatch.setattr(half["down"], "_library", None)  # not what runs
    stream = draw(rows, 40, dtype=dtype)
    expected = half["exact"](stream)
    assert half["down"](half["gate_up"](stream), stream) is stream
    assert_close(stream, expected)


@pytest.mark.skipif(interpreting.INTERPRETED, reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("rows", [1, 2, 8])
def test_operations_are_captured(rows: int) -> None:
    """Replays of a graph equal the formula, kernels that start early included, on inputs that change between replays."""
    half = layer_half(torch.bfloat16, rows, 512, 1408)
    stream = draw(rows, 512, dtype=torch.bfloat16)
    with torch.no_grad():
        half["down"](half["gate_up"](stream), stream)  # compiled before the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(3):
                half["down"](half["gate_up"](stream), stream)
        for seed in range(20):
            stream.copy_(draw(rows, 512, dtype=torch.bfloat16, seed=seed))
            expected = stream.clone()
            for _ in range(3):
                expected = half["exact"](expected).to(torch.bfloat16)
            graph.replay()
            gap = (stream.double() - expected.double()).norm() / expected.double().norm()
            assert gap < 0.02


def test_unknown_activation_is_refused_when_made() -> None:
    """Before any step runs, by a leaf of the error tree."""
    weight = torch.zeros(4, 4)
    with pytest.raises(UnsupportedModel, match="relu"):
        glue.norm_gated_for(torch.ones(4), EPS, weight, None, "relu", 1)
    with pytest.raises(UnsupportedModel, match="relu"):
        glue.gated(weight, "relu")


def test_tiles_cover_the_rows_they_are_for() -> None:
    """A gated tile reads as many weights as an ungated one; loads are sixteen bytes a thread; float64 and many rows have none."""
    for dtype, lane in ((torch.bfloat16, 8), (torch.float32, 4)):
        for outputs in (3584, 152064):
            apart, gated = (products.tiles(1, outputs, dtype, gated=flag) for flag in (False, True))
            assert [2 * tile.block_n for tile in gated] == [tile.block_n for tile in apart]
            assert all(tile.block_k == 32 * lane * tile.warps for tile in apart)
    assert products.tiles(8, 3584, torch.bfloat16, gated=False)
    assert not products.tiles(8, 3584, torch.float32, gated=False)
    assert not products.tiles(1, 3584, torch.float64, gated=False)
    assert not products.tiles(products.MOST_ROWS + 1, 3584, torch.bfloat16, gated=False)


def test_a_way_that_fails_or_disagrees_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot run or is wrong is said, and never chosen."""
    reference = torch.ones(4)

    def broken() -> Tensor:
        raise RuntimeError("out of shared memory")

    assert choice._agrees("product", "same", lambda: reference.clone(), reference)
    assert not choice._agrees("product", "broken", broken, reference)
    assert not choice._agrees("product", "wrong", lambda: reference * 1.01, reference)
    assert not choice._agrees("product", "nan", lambda: reference * float("nan"), reference)
    assert [record.args[1] for record in caplog.records if record.args] == ["broken", "wrong", "nan"]
