"""AsymKV (arXiv 2506.05410) against its equations written out in float64, and against its theorem."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from making import draw
from torch import Tensor
from torch.autograd.functional import jacobian

from kvbench.caches.homogeneous import HomogeneousLayer, fisher, lowest_pairs, sums
from kvbench.caches.layer import LayerContext, TokenView
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Observer
from kvbench.caches.rope import Rope

HEADS, KV_HEADS, DIM, SCALING = 4, 2, 8, 0.3


def tables(x: Tensor, positions: Tensor, rotary: int, scale: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[1, n, R]`` of a rotary embedding, scaled as YaRN scales them."""
    angles = positions[..., None].to(x.dtype) * 0.3 ** torch.arange(rotary // 2, dtype=x.dtype)
    both = torch.cat((angles, angles), -1)
    return both.cos() * scale, both.sin() * scale


def rope(rotary: int = DIM, scale: float = 1.0) -> Rope:
    return Rope(lambda x, positions: tables(x, positions, rotary, scale))


def rotation(used: Rope | None, position: int) -> Tensor:
    """The matrix R with ``rotated = R x`` at a position, column by column."""
    identity = torch.eye(DIM, dtype=torch.float64)
    return identity if used is None else used.rotate(identity[None, :, None], position)[0, :, 0].T


def view(total: int, window: int, used: Rope | None, *, batch: int = 1, seed: int = 0) -> tuple[TokenView, Tensor]:
    """A prompt whose keys carry RoPE, and its keys without."""
    flat, v = draw(batch, KV_HEADS, total, DIM, seed=seed), draw(batch, KV_HEADS, total, DIM, seed=seed + 1)
    q = 2 * draw(batch, HEADS, total, DIM, seed=seed + 2)
    k = flat if used is None else used.rotate(flat, 0)
    q = q if used is None else used.rotate(q, 0)
    observer = Observer(Needs(window=window), SCALING)
    observer.follow(q, k, 0)
    context = LayerContext(index=0, layers=1, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM, dtype=torch.float64, rope=used)
    return TokenView(k, v, torch.arange(total).expand(k.shape[:3]), total, SCALING, observer, context), flat


def layer(prompt: TokenView, ratio: float, window: int, sinks: int, weights: str = "fisher") -> HomogeneousLayer:
    made = HomogeneousLayer(prompt.layer, ratio, window, sinks, weights)
    made.adopt(prompt)
    return made


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query ``[D]`` over ``[T, D]``."""
    return (k @ q * SCALING).softmax(0) @ v


def lma(q: Tensor, k: Tensor, v: Tensor, counts: Tensor) -> Tensor:
    """Locally merged attention as the paper writes it; ``v`` are sums of values."""
    e = (k @ q * SCALING).exp()
    return (e / (e * counts).sum()) @ v


def naive_pairs(mass: list[float], merges: int) -> list[int]:
    entries = [(m, 1) for m in mass]
    for _ in range(merges):
        at = min(range(len(entries) - 1), key=lambda i: entries[i][0] + entries[i + 1][0])
        (a, n), (b, m) = entries[at], entries[at + 1]
        entries[at : at + 2] = [(a + b, n + m)]
    return [n for _, n in entries]


@pytest.mark.parametrize("merges", [0, 1, 7, 20, 39])
@pytest.mark.parametrize("seed", range(4))
def test_the_lowest_pairs_are_joined_one_after_the_other(merges: int, seed: int) -> None:
    mass = draw(40, seed=seed).square().tolist() if seed else [1.0] * 40  # all ties, once
    assert lowest_pairs(mass, merges) == naive_pairs(mass, merges)


def test_sums_over_runs() -> None:
    x, sizes = draw(2, 3, 6, 4, seed=0), torch.tensor([[1, 3, 2], [2, 2, 2]], dtype=torch.int32)
    summed = sums(x, sizes)
    for row, edges in enumerate(([0, 1, 4, 6], [0, 2, 4, 6])):
        for entry in range(3):
            assert torch.allclose(summed[row, :, entry], x[row, :, edges[entry] : edges[entry + 1]].sum(1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("used", [None, rope(), rope(4), rope(DIM, 1.2)], ids=["none", "full", "partial", "scaled"])
def test_the_fisher_diagonal_is_that_of_the_layers_own_jacobian(used: Rope | None) -> None:
    """A white gradient at the outputs: the squared gradient of each key before RoPE is on average the Jacobian's squares, summed."""
    total, window, span = 10, 3, slice(2, 7)
    prompt, flat = view(total, window, used)
    found = fisher(prompt, prompt.window_attention(window), span)
    turns = torch.stack([rotation(used, t) for t in range(total)])
    for kv in range(KV_HEADS):
        expected = torch.zeros(total, DIM, dtype=torch.float64)
        for head in (2 * kv, 2 * kv + 1):
            for i in range(window):
                q, seen = prompt.observed.window[0, head, i], total - window + 1 + i
                v = prompt.values[0, kv, :seen]

                def output(keys: Tensor, q: Tensor = q, seen: int = seen, v: Tensor = v) -> Tensor:
                    return full_attention(q, torch.einsum("tij,tj->ti", turns[:seen], keys[:seen]), v)

                expected += jacobian(output, flat[0, kv]).square().sum(0)
        assert torch.allclose(found[0, kv], expected[span], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("weights", ["fisher", "attention", "cardinality"])
@pytest.mark.parametrize("used", [None, rope(), rope(4)], ids=["none", "full", "partial"])
def test_what_is_stored_and_read_is_what_the_equations_give(used: Rope | None, weights: str) -> None:
    """k* entry by entry, pair by pair in the order of merging; value sums, counts and locally merged attention."""
    total, ratio, window, sinks = 24, 0.5, 4, 3
    prompt, flat = view(total, window, used)
    made = layer(prompt, ratio, window, sinks, weights)
    probs = prompt.window_attention(window)
    middle = slice(sinks, total - window)
    sizes = naive_pairs(probs[0, :, :, middle].sum((0, 1)).tolist(), total - 12)
    sizes = [1] * sinks + sizes + [1] * window
    assert made.counts.view()[0, 0, :, 0].tolist() == sizes
    everything = fisher(prompt, probs, slice(0, total))
    q_new, k_new, v_new = draw(1, HEADS, 2, DIM, seed=9), draw(1, KV_HEADS, 2, DIM, seed=10), draw(1, KV_HEADS, 2, DIM, seed=11)
    made.append(k_new, v_new)
    out = made.attend(q_new)
    for kv in range(KV_HEADS):
        received = probs[0, 2 * kv : 2 * kv + 2].sum((0, 1))
        keys, values, start = [], [], 0
        for size in sizes:
            members = range(start, start + size)
            h = {"fisher": everything[0, kv], "attention": received[:, None], "cardinality": torch.ones(total, 1)}[weights]
            key, weight = flat[0, kv, start], h[start]
            for m in members[1:]:  # eq. of k*, the Hessians added as two become one
                key, weight = (weight * key + h[m] * flat[0, kv, m]) / (weight + h[m]), weight + h[m]
            keys.append(rotation(used, start + size - 1) @ key)
            values.append(prompt.values[0, kv, start : start + size].sum(0))
            start += size
        for i in range(2):
            k, v = torch.stack((*keys, *k_new[0, kv, : i + 1])), torch.stack((*values, *v_new[0, kv, : i + 1]))
            counts = torch.tensor([*sizes, *([1] * (i + 1))], dtype=torch.float64)
            for head in (2 * kv, 2 * kv + 1):
                assert torch.allclose(out[0, head, i], lma(q_new[0, head, i], k, v, counts), rtol=0, atol=1e-13)


def test_values_lose_nothing_where_neighbours_have_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's theorem: equal keys, any values, and attention is what it was."""
    monkeypatch.setattr("kvbench.caches.homogeneous.lowest_pairs", lambda mass, merges: [3] * 10)
    prompt, _ = view(31, 1, None)
    prompt = replace(prompt, keys=prompt.keys[:, :, torch.arange(31) // 3 * 3])
    made = layer(prompt, 1 - 11 / 31, 1, 0)
    assert made.length == 11
    q, k, v = draw(1, HEADS, 1, DIM, seed=6), draw(1, KV_HEADS, 1, DIM, seed=7), draw(1, KV_HEADS, 1, DIM, seed=8)
    made.append(k, v)
    out = made.attend(q)
    for head in range(HEADS):
        kv = head // 2
        exact = full_attention(q[0, head, 0], torch.cat((prompt.keys[0, kv], k[0, kv])), torch.cat((prompt.values[0, kv], v[0, kv])))
        assert torch.allclose(out[0, head, 0], exact, rtol=0, atol=1e-13)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.9, 0.97, 0.999])
def test_the_budget_is_met_and_no_token_is_lost(ratio: float) -> None:
    total = 40
    prompt, _ = view(total, 8, rope(), batch=2)
    made = layer(prompt, ratio, 8, 4)
    kept = max(1, int(total * (1 - ratio) + 1e-9))
    assert made.length == kept
    assert made.counts.view().sum((1, 2, 3)).tolist() == [total, total]
    counted = made.ledger().items
    assert counted["tokens in each entry"] == 2 * kept * 4
    assert counted["keys"] == counted["values"] == 2 * KV_HEADS * kept * DIM * 8
    if kept == total:
        assert torch.equal(made.keys_store.buffer.view(), prompt.keys)
        assert torch.equal(made.values_store.buffer.view(), prompt.values)


def test_a_token_that_stands_alone_is_stored_as_it_is() -> None:
    prompt, _ = view(40, 8, rope(), batch=2)
    made = layer(prompt, 0.4, 8, 4)
    for row in range(2):
        sizes = made.counts.view()[row, 0, :, 0]
        alone = (sizes == 1).nonzero()[:, 0]
        at = sizes.cumsum(0)[alone] - 1
        assert 0 < len(alone) < len(sizes)
        assert torch.equal(made.keys_store.buffer.view()[row, :, alone], prompt.keys[row, :, at])
        assert torch.equal(made.values_store.buffer.view()[row, :, alone], prompt.values[row, :, at])


def test_a_key_that_no_query_sees_weighs_as_its_neighbours() -> None:
    """Attention may underflow to nothing: the merged key is then the mean, and a number."""
    prompt, _ = view(12, 2, None)
    prompt = replace(prompt, keys=prompt.keys.clone())
    prompt.keys[:, :, 3:9] = -1e4 * prompt.observed.window[:, ::2, -1:].sign()
    made = layer(prompt, 0.5, 2, 1)
    assert bool(made.keys_store.buffer.view().isfinite().all())
    assert bool(made.attend(draw(1, HEADS, 1, DIM, seed=3)).isfinite().all())
