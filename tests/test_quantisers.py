"""Quantisers against plain slow references of their papers' equations, token by token in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvbench.caches.layer import LayerCache, LayerContext, prompt_view
from kvbench.caches.observe import Observer
from kvbench.methods.base import resolve
from kvbench.spec import MethodSpec, RunSpec

D, HEADS, SCALING = 16, 2, 0.25
CONTEXT = LayerContext(0, 1, 2 * HEADS, HEADS, D, torch.float64)


def rounded(x: Tensor, bits: int) -> Tensor:
    """KIVI eq. (1)–(2) for one group: zero point min, scale (max − min) / (2^bits − 1)."""
    low, high = x.min(), x.max()
    if low == high:
        return x.clone()
    scale = (high - low) / (2**bits - 1)
    return torch.round((x - low) / scale) * scale + low


def kivi_groups(keys: Tensor, values: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Every whole group ``[H, T, D]`` as Algorithm 1 quantises it, each on its own in a loop; what is quantised once stays so."""
    total = keys.shape[1]
    keys, values = keys.clone(), values.clone()
    for head in range(keys.shape[0]):
        for start in range(0, total - total % group, group):
            for channel in range(D):
                part = (head, slice(start, start + group), channel)
                keys[part] = rounded(keys[part], bits)
        for token in range(total):
            for start in range(0, D, group):
                part = (head, token, slice(start, start + group))
                values[part] = rounded(values[part], bits)
    return keys, values


def attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One query ``[Hq, D]`` over ``[H, T, D]``, head by head."""
    groups = q.shape[0] // keys.shape[0]
    outs = []
    for head in range(q.shape[0]):
        weights = torch.softmax(keys[head // groups] @ q[head] * SCALING, 0)
        outs.append(weights @ values[head // groups])
    return torch.stack(outs)


def filled(text: str, keys: Tensor, values: Tensor) -> LayerCache:
    layer = resolve(MethodSpec.parse(text), RunSpec()).layer(CONTEXT)
    layer.adopt(prompt_view(keys, values, SCALING, Observer(layer.needs, SCALING), CONTEXT))
    return layer


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("prompt", [5, 32, 43])
def test_kivi_is_its_papers_algorithm(bits: int, prompt: int) -> None:
    group, residual, fresh = 8, 16, 40
    draw = torch.Generator().manual_seed(bits * 100 + prompt)
    keys, values = torch.randn(2, HEADS, prompt + fresh, D, dtype=torch.float64, generator=draw)
    queries = torch.randn(2 * HEADS, fresh, D, dtype=torch.float64, generator=draw)
    layer = filled(f"kivi:bits={bits},group={group},residual={residual}", keys[None, :, :prompt], values[None, :, :prompt])
    ours = layer.extend(queries[None], keys[None, :, prompt:], values[None, :, prompt:])[0]
    k_groups, v_groups = kivi_groups(keys, values, bits, group)
    for step in range(fresh):
        seen = prompt + step + 1
        # A token's own query finds it in the residual; what is full by then is quantised after its step.
        k_old, v_old = seen - 1 - (seen - 1) % residual, max(0, seen - residual)
        k_read = torch.cat((k_groups[:, :k_old], keys[:, k_old:seen]), 1)
        v_read = torch.cat((v_groups[:, :v_old], values[:, v_old:seen]), 1)
        assert torch.allclose(ours[:, step], attention(queries[:, step], k_read, v_read), atol=1e-12, rtol=0)


def test_fp8_rounds_to_the_nearest_number_of_the_format() -> None:
    """Against a table of all 256 codes, for every value apart from ties."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    numbers = numbers[~numbers.isnan()]
    keys, values = torch.randn(2, 1, HEADS, 9, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = filled("fp8", keys, values)
    for x, read in zip((keys, values), layer.read(torch.float64), strict=True):
        scale = x.abs().amax(-1, keepdim=True) / 448
        nearest = numbers[(x / scale)[..., None].sub(numbers).abs().argmin(-1)] * scale
        # torch rounds to e4m3 through float32: a value within 2⁻²⁴ of a tie may go either way
        assert ((read - nearest).abs() > 1e-12).sum() == 0


def test_fp8_takes_a_token_of_zeros_and_the_largest_numbers() -> None:
    keys = torch.zeros(1, HEADS, 2, D, dtype=torch.float64)
    keys[:, :, 1, 0], keys[:, :, 1, 1] = 3e4, -3e4
    read, _ = filled("fp8", keys, keys).read(torch.float64)
    assert torch.allclose(read, keys, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("axis", "along"), [("token", 3), ("channel", 2)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_each_side_goes_along_its_own_axis(axis: str, along: int, bits: int) -> None:
    keys, values = torch.randn(2, 1, HEADS, 32, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    residual = ",residual=8" if axis == "channel" else ""
    layer = filled(f"int4:k_bits={bits},v_bits=16,k_axis={axis},group=8{residual}", keys, values)
    k_read, v_read = layer.read(torch.float64)
    groups = keys.unflatten(along, (-1, 8))
    low, high = groups.amin(along + 1, True), groups.amax(along + 1, True)
    step = (high - low) / (2**bits - 1)
    expected = (torch.round((groups - low) / step) * step + low).flatten(along, along + 1)
    assert torch.allclose(k_read, expected, atol=1e-12, rtol=0)
    assert torch.equal(v_read, values)


def test_values_per_channel_wait_for_their_group() -> None:
    keys, values = torch.randn(2, 1, HEADS, 13, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    layer = filled("int4:v_axis=channel,group=8,residual=8", keys, values)
    _, read = layer.read(torch.float64)
    assert not torch.equal(read[:, :, :8], values[:, :, :8])
    assert torch.equal(read[:, :, 8:], values[:, :, 8:])
