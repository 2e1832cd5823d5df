"""Codes survive packing, and what is read back is as near as the scheme promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.caches.packing import BITS, Scheme, dequantise, pack, quantise, unpack

quickly = settings(max_examples=60, deadline=None)
FORMATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@st.composite
def schemes(draw: Any) -> tuple[Scheme, torch.Tensor]:
    """A scheme and numbers ``[B, H, T, D]`` that its groups divide."""
    scheme = Scheme(
        draw(st.sampled_from(BITS)), draw(st.integers(1, 9)), draw(st.sampled_from(("token", "channel"))), draw(st.booleans())
    )  # fmt: skip
    whole, free = scheme.group * draw(st.integers(1, 4)), draw(st.integers(1, 5))
    tokens, width = (free, whole) if scheme.axis == "token" else (whole, free)
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randn(2, 2, tokens, width, generator=numbers, dtype=torch.float64)
    return scheme, x * draw(st.sampled_from((1e-3, 1.0, 300.0))) + draw(st.sampled_from((0.0, -7.0, 40.0)))


@quickly
@given(bits=st.sampled_from(BITS), blocks=st.integers(0, 6), seed=st.integers(0, 2**32))
def test_packing_loses_nothing(bits: int, blocks: int, seed: int) -> None:
    shape = (2, 3, 5, blocks * 8)
    codes = torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, 5, blocks * bits)
    assert torch.equal(unpack(packed, bits), codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_lie_in_the_bytes_lowest_first(bits: int) -> None:
    codes = torch.tensor([[[[1, 2, 3, 0, 1, 2, 3, 1]]]], dtype=torch.uint8)
    number = sum(int(c) << (bits * i) for i, c in enumerate(codes.flatten().tolist()))
    assert bytes(pack(codes, bits).flatten().tolist()) == number.to_bytes(bits, "little")


@pytest.mark.parametrize(("bits", "width"), [(2, 6), (3, 12), (4, 5)])
def test_codes_that_fill_no_whole_bytes_are_refused(bits: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{width} codes of {bits} bits do not fill whole bytes"):
        pack(torch.zeros(1, 1, 1, width, dtype=torch.uint8), bits)


@quickly
@given(made=schemes(), scale_dtype=st.sampled_from(FORMATS))
def test_no_number_moves_by_more_than_half_a_step(made: tuple[Scheme, torch.Tensor], scale_dtype: torch.dtype) -> None:
    """Rounding a scale or zero point to its format may push a group's ends beyond the last code; nothing else adds to half a step."""
    scheme, x = made
    codes, scale, zero = quantise(x, scheme, scale_dtype)
    assert int(codes.max()) <= scheme.levels
    assert (zero is None) == scheme.symmetric
    assert scale.dtype == scale_dtype
    error = (dequantise(codes, scale, zero, scheme, torch.float64) - x).abs()
    along = 3 if scheme.axis == "token" else 2
    step = scale.double().repeat_interleave(scheme.group, along)
    info = torch.finfo(scale_dtype)
    floor = 0.0 if zero is None else zero.double().abs().repeat_interleave(scheme.group, along)
    reach = scheme.centre if scheme.symmetric else scheme.levels
    rounding = info.eps * (reach * step + floor) + reach * info.smallest_normal
    assert bool((error <= step / 2 + rounding).all())


@quickly
@given(made=schemes())
def test_a_symmetric_zero_stays_zero_and_signs_mirror(made: tuple[Scheme, torch.Tensor]) -> None:
    scheme, x = Scheme(made[0].bits, made[0].group, made[0].axis, symmetric=True), made[1]
    x = torch.where(x.abs() < x.abs().median(), 0.0, x)

    def there_and_back(y: torch.Tensor) -> torch.Tensor:
        return dequantise(*quantise(y, scheme, torch.float64), scheme, torch.float64)

    assert bool((there_and_back(x)[x == 0] == 0).all())
    assert torch.equal(there_and_back(-x), -there_and_back(x))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 3.5, -2.0])
def test_a_constant_group_is_exact(symmetric: bool, value: float) -> None:
    scheme = Scheme(4, 8, symmetric=symmetric)
    x = torch.full((1, 1, 2, 16), value, dtype=torch.float64)
    back = dequantise(*quantise(x, scheme, torch.float64), scheme, torch.float64)
    assert torch.allclose(back, x, rtol=1e-15, atol=0)


@pytest.mark.parametrize(("axis", "shape", "what"), [("token", (1, 1, 4, 10), "head size, 10"), ("channel", (1, 1, 10, 4), "tokens, 10")])
def test_a_group_that_does_not_divide_is_refused(axis: Any, shape: tuple[int, ...], what: str) -> None:
    with pytest.raises(ValueError, match=f"group=4 does not divide the .*{what}"):
        quantise(torch.zeros(shape), Scheme(4, 4, axis), torch.float32)


@pytest.mark.parametrize(("bits", "group", "says"), [(5, 8, "bits=5"), (1, 8, "bits=1"), (4, 0, "group=0")])
def test_a_scheme_that_cannot_be_is_refused(bits: int, group: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Scheme(bits, group)
