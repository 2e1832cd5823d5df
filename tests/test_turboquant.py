"""TurboQuant (arXiv 2504.19874) against its Algorithms 1 and 2 written out in float64, and against its own figures."""

from __future__ import annotations

from math import gamma, pi, sqrt

import numpy as np
import pytest
import torch
from making import draw, method_of
from torch import Tensor

from kvbench.caches.codebook import lloyd_max
from kvbench.caches.layer import LayerContext, TokenView
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Observer
from kvbench.caches.packing import pack, unpack
from kvbench.caches.turbo import TurboLayer, TurboStore, draw_frame
from kvbench.models.shape import Shape

CPU = torch.device("cpu")
DIM, DRAWS = 16, 500
D_MSE = {1: (0.36, 0.005), 2: (0.117, 0.001), 3: (0.03, 0.005), 4: (0.009, 0.001)}
"""Theorem 1's figures for b bits, and half a unit or one unit of the last digit that the paper prints."""


def units(*shape: int, seed: int = 100) -> Tensor:
    x = draw(*shape, seed=seed)
    return x / x.norm(dim=-1, keepdim=True)


def frame(dim: int, seed: int = 0) -> Tensor:
    return draw_frame(dim, True, seed, torch.float64, CPU)


def context(dim: int, heads: int = 4, kv_heads: int = 2, dtype: torch.dtype = torch.float64) -> LayerContext:
    return LayerContext(index=0, layers=1, heads=heads, kv_heads=kv_heads, head_dim=dim, dtype=dtype)


def reference(x: Tensor, bits: int, residual: bool, rotation: Tensor, sketch: Tensor) -> Tensor:
    """One vector through QUANT and DEQUANT of Algorithm 1 or 2, coordinate by coordinate."""
    dim = len(x)
    norm = float(sum(v * v for v in x.tolist()) ** 0.5)
    estimate = torch.zeros(dim, dtype=torch.float64)
    if bits - residual:
        centroids = lloyd_max(dim, bits - residual)
        for j in range(dim):
            y = float(rotation[j] @ x) / norm
            nearest = min(centroids, key=lambda c: abs(c - y))
            estimate += norm * nearest * rotation[j]
    if not residual:
        return estimate
    left = x - estimate
    signs = [1.0 if float(sketch[i] @ left) >= 0 else -1.0 for i in range(dim)]
    return estimate + sqrt(pi / 2) / dim * float(left.norm()) * sum(s * sketch[i] for i, s in enumerate(signs))


@pytest.mark.parametrize("dim", [3, 8, 64])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_centroids_are_the_means_of_their_cells_under_the_density_itself(dim: int, bits: int) -> None:
    """Eq. 4's optimum on a fine grid of Lemma 1's density: a log-concave density has one such codebook."""
    grid = (np.arange(2_000_000) + 0.5) / 1_000_000 - 1
    density = (1 - grid**2) ** ((dim - 3) / 2)
    centroids = np.array(lloyd_max(dim, bits))
    cell = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, grid)
    assert centroids == pytest.approx(np.bincount(cell, density * grid) / np.bincount(cell, density), abs=1e-6)
    assert (np.diff(centroids) > 0).all()


def test_the_codebook_has_the_closed_forms_of_one_bit_and_the_papers_gaussian_figures() -> None:
    for dim in (8, 64, 128):
        assert lloyd_max(dim, 1)[1] == pytest.approx(gamma(dim / 2) / (sqrt(pi) * gamma((dim + 1) / 2)), rel=1e-12)
    many = 65536
    assert [c * sqrt(many) for c in lloyd_max(many, 1)[1:]] == pytest.approx([sqrt(2 / pi)], rel=1e-4)
    assert [c * sqrt(many) for c in lloyd_max(many, 2)[2:]] == pytest.approx([0.453, 1.51], abs=5e-4)
    with pytest.raises(ValueError, match="3 dimensions"):
        lloyd_max(2, 1)


def test_one_bit_codes_survive_packing() -> None:
    codes = torch.randint(0, 2, (2, 3, 5, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert pack(codes, 1).shape == (2, 3, 5, 3)
    assert torch.equal(unpack(pack(codes, 1), 1), codes)


def test_the_rotation_is_orthogonal_and_a_seed_names_it() -> None:
    drawn = frame(16)
    assert torch.allclose(drawn[:16] @ drawn[:16].T, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-14)
    assert torch.equal(drawn[:16], draw_frame(16, False, 0, torch.float64, CPU))
    assert not torch.allclose(drawn, frame(16, seed=1))
    first = torch.stack([frame(4, seed=s)[:4] for s in range(400)])
    assert float(first.mean(0).abs().max()) < 4 * 0.5 / 20  # each entry has mean 0 and variance 1/4, diagonal too


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_store_reads_what_the_papers_algorithm_gives(bits: int, residual: bool) -> None:
    dim, x = 16, draw(1, 2, 7, 16, seed=100) * 3
    store = TurboStore("keys", bits, residual, frame(dim), torch.float64)
    store.append(x[:, :, :5])
    store.append(x[:, :, 5:])
    read = store.expand(store.read(torch.float64))
    for head in range(2):
        for t in range(7):
            slow = reference(x[0, head, t], bits, residual, frame(dim)[:dim], frame(dim)[dim:])
            assert torch.allclose(read[0, head, t], slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("keys", "values"), [((3, True), (2, False)), ((2, False), (3, True)), ((1, True), (1, False))])
@pytest.mark.parametrize("recent", [0, 3])
def test_a_layers_output_is_attention_over_what_the_algorithm_gives(keys: tuple[int, bool], values: tuple[int, bool], recent: int) -> None:
    dim, total = 16, 9
    k, v, q = draw(1, 2, total, dim, seed=1), draw(1, 2, total, dim, seed=2), draw(1, 4, 2, dim, seed=3)
    layer = TurboLayer(context(dim), keys, values, recent, frame(dim))
    layer.compress(view(k[:, :, :7], v[:, :, :7]))
    layer.append(k[:, :, 7:], v[:, :, 7:])
    out, drawn = layer.attend(q), frame(dim)
    for head in range(4):
        kv = head // 2
        slow = [[reference(x[0, kv, t], *how, drawn[:dim], drawn[dim:]) for t in range(total)] for x, how in ((k, keys), (v, values))]
        for t in range(7 - recent if recent else total, total):  # nothing turned into codes since the prompt
            slow[0][t], slow[1][t] = k[0, kv, t], v[0, kv, t]
        for i in range(2):
            seen = total - 1 + i
            logits = torch.stack([q[0, head, i] @ x for x in slow[0][:seen]]) * dim**-0.5
            assert torch.allclose(out[0, head, i], logits.softmax(0) @ torch.stack(slow[1][:seen]), rtol=0, atol=1e-12)


def view(k: Tensor, v: Tensor) -> TokenView:
    positions = torch.arange(k.shape[2]).expand(k.shape[:3])
    return TokenView(k, v, positions, k.shape[2], k.shape[3] ** -0.5, Observer(Needs(), 1.0), context(k.shape[3]))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_distortion_is_the_papers(bits: int) -> None:
    """Theorem 1: mean squared error of unit vectors; the general bound is √3·π/2 · 4^−b."""
    x = units(1, 1, 4000, 128)
    store = TurboStore("keys", bits, False, frame(128), torch.float64)
    store.append(x)
    error = float((store.expand(store.read(torch.float64)) - x).square().sum(-1).mean())
    figure, digit = D_MSE[bits]
    assert error == pytest.approx(figure, abs=digit)
    assert 4.0**-bits <= error <= sqrt(3) * pi / 2 * 4.0**-bits


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_residual_step_makes_inner_products_unbiased(bits: int) -> None:
    """Theorem 2, over draws of rotation and sketch: no bias, and an error of at most π/2 · D_mse(b − 1) / d."""
    error = errors(bits, residual=True)
    assert float((error.mean(0) / error.std(0)).abs().max()) < 4 / sqrt(DRAWS)
    left = 1.0 if bits == 1 else mse(bits - 1)
    assert 0.5 < float(error.square().mean()) / (pi / 2 * left / DIM) < 1.05


def test_without_it_one_bit_shrinks_inner_products() -> None:
    """§3.2: by 2/π in high dimensions; here by d · c² with the exact centroid c."""
    error, shrunk = errors(1, residual=False), DIM * lloyd_max(DIM, 1)[1] ** 2
    assert shrunk == pytest.approx(2 / pi, abs=0.03)
    bias = error - (shrunk - 1) * 0.6
    assert float((bias.mean(0) / bias.std(0)).abs().max()) < 4 / sqrt(DRAWS)
    assert float((error.mean(0) / error.std(0)).abs().min()) > 10 / sqrt(DRAWS)


def errors(bits: int, *, residual: bool) -> Tensor:
    """Of inner products of 20 pairs of unit vectors that are 0.6, in each of many draws: ``[draws, 20]``."""
    x, other = units(20, DIM), units(20, DIM, seed=101)
    other = other - (other * x).sum(-1, keepdim=True) * x
    y = 0.6 * x + 0.8 * other / other.norm(dim=-1, keepdim=True)
    found = []
    for seed in range(DRAWS):
        store = TurboStore("keys", bits, residual, draw_frame.__wrapped__(DIM, True, seed, torch.float64, CPU), torch.float64)
        store.append(x[None, None])
        found.append((store.project(y[None, None]) * store.read(torch.float64)).sum(-1)[0, 0] - 0.6)
    return torch.stack(found)


def mse(bits: int) -> float:
    """Mean squared error of unit vectors, measured."""
    store, x = TurboStore("keys", bits, False, frame(DIM), torch.float64), units(1, 1, 4000, DIM)
    store.append(x)
    return float((store.expand(store.read(torch.float64)) - x).square().sum(-1).mean())


def test_bytes_are_the_bits_that_were_asked_for_and_the_norms() -> None:
    layer = method_of("turboquant:bits=4").layer(context(64, dtype=torch.bfloat16))
    layer.append(*(draw(1, 2, 10, 64, seed=100).bfloat16() for _ in "kv"))
    items = layer.ledger().items
    assert {name: size // 20 for name, size in items.items() if name != "lengths"} == {
        "keys codes": 24, "keys norms": 2, "keys residual signs": 8, "keys residual norms": 2, "values codes": 32, "values norms": 2,
    }  # fmt: skip
    assert layer.ledger().artefacts == {"rotation and sketch": 2 * 64 * 64 * 4, "key codebook": 8 * 4, "value codebook": 16 * 4}


def test_a_zero_vector_is_read_as_zero_and_other_formats_stay_near() -> None:
    for residual in (False, True):
        store = TurboStore("keys", 4, residual, frame(32).float(), torch.bfloat16)
        store.append(torch.zeros(1, 1, 1, 32, dtype=torch.bfloat16))
        store.append(units(1, 1, 50, 32).bfloat16())
        read = store.expand(store.read(torch.bfloat16))
        assert read.dtype == torch.bfloat16
        assert not read[:, :, 0].any()
        assert float((read[:, :, 1:].double() - units(1, 1, 50, 32)).square().sum(-1).mean()) < (0.08 if residual else 0.013)


def test_a_head_whose_signs_do_not_fill_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="codes of a head of 100 do not fill whole bytes"):
        method_of("turboquant").check(Shape(2, 4, 2, 100, 400, 128, 2048))
