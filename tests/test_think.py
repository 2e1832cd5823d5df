"""ThinK against its equations in plain float64: the channels kept, attention without the others, and the bytes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from making import draw
from torch import Tensor

from kvbench.caches.channels import ThinLayer, best_channels
from kvbench.caches.layer import LayerContext, TokenView, prompt_view
from kvbench.caches.ledger import storage_bytes
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Observer
from kvbench.methods.think import ThinK

B, H, HKV, T, D = 2, 6, 2, 21, 10
SCALING = D**-0.5


def tokens(seed: int, count: int = T) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values whose channels differ in size."""
    size = 0.2 + draw(D, seed=seed + 9).abs()
    return (
        draw(B, H, count, D, seed=seed) * size.flip(0),
        draw(B, HKV, count, D, seed=seed + 1) * size,
        draw(B, HKV, count, D, seed=seed + 2),
    )


def made(**given: Any) -> ThinK:
    return ThinK(**{"key_channel_compression_ratio": 0.4, "window": 5, "recent": 4, **given})


def view(method: ThinK, q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype = torch.float64, needs: Needs = Needs()) -> TokenView:  # noqa: B008 (frozen)
    observer = Observer(method.needs | needs, SCALING)
    observer.follow(q, k, 0)
    return prompt_view(k, v, SCALING, observer, LayerContext(0, 1, H, HKV, D, dtype))


def layer_of(method: ThinK, dtype: torch.dtype = torch.float64) -> ThinLayer:
    layer = method.layer(LayerContext(0, 1, H, HKV, D, dtype))
    assert isinstance(layer, ThinLayer)
    return layer


def reference_channels(q: Tensor, k: Tensor, window: int, removed: int) -> list[list[list[int]]]:
    """Per row and KV head: the channels with the largest Frobenius norm of q[:, j] k[:, j]ᵀ, the group's window queries stacked."""
    found: list[list[list[int]]] = []
    for row in range(q.shape[0]):
        found.append([])
        for head in range(HKV):
            group = q[row, head * (H // HKV) : (head + 1) * (H // HKV), -window:].flatten(0, 1).tolist()
            keys = k[row, head].tolist()
            norms = [math.sqrt(sum((a[j] * b[j]) ** 2 for a in group for b in keys)) for j in range(D)]
            found[-1].append(sorted(sorted(range(D), key=lambda j: norms[j], reverse=True)[: D - removed]))
    return found


def zeroed(k: Tensor, kept: list[list[list[int]]], count: int) -> Tensor:
    """``k`` whose first ``count`` tokens have only the ``kept`` channels."""
    out = k.clone()
    for row, heads in enumerate(kept):
        for head, channels in enumerate(heads):
            gone = [j for j in range(D) if j not in channels]
            out[row, head, :count, gone] = 0
    return out


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(H // HKV, 1) for x in (k, v))
    m, total = q.shape[2], k.shape[2]
    visible = torch.ones(m, total, dtype=torch.bool).tril(total - m)
    return (q @ k.transpose(2, 3) * SCALING).masked_fill(~visible, float("-inf")).softmax(-1) @ v


@pytest.mark.parametrize(("ratio", "removed"), [(0.4, 4), (0.5, 5), (0.85, 8), (0.0, 0)])
@pytest.mark.parametrize("window", [1, 5, 64])
def test_kept_channels_are_the_paper_s(ratio: float, removed: int, window: int) -> None:
    method, (q, k, v) = made(key_channel_compression_ratio=ratio, window=window), tokens(1)
    layer = layer_of(method)
    layer.adopt(view(method, q, k, v))
    assert layer.old_keys.channels is not None
    assert layer.old_keys.channels.tolist() == reference_channels(q, k, window, removed)


@pytest.mark.parametrize("recent", [0, 4, T, T + 5])
@pytest.mark.parametrize("fresh", [1, 6])
def test_attention_is_that_of_zeroed_channels(recent: int, fresh: int) -> None:
    method, (q, k, v) = made(recent=recent), tokens(1)
    layer = layer_of(method)
    layer.adopt(view(method, q, k, v))
    kept = reference_channels(q, k, 5, 4)
    keys = zeroed(k, kept, max(0, T - recent))
    for step in range(2):
        q, fresh_k, fresh_v = tokens(30 + step, fresh)
        keys, v = torch.cat((keys, fresh_k), 2), torch.cat((v, fresh_v), 2)
        torch.testing.assert_close(layer.extend(q, fresh_k, fresh_v), attention(q, keys, v), rtol=0, atol=1e-12)
        for found, wanted in zip(layer.read(torch.float64), (keys, v), strict=True):
            assert torch.equal(found, wanted)
    assert layer.length == T + 2 * fresh


def test_all_query_heads_of_the_group_vote() -> None:
    """A channel that one head of a group alone reads stays; one that no head reads goes, however large its keys."""
    method = made(key_channel_compression_ratio=0.9, window=3)
    q, k, v = torch.zeros(1, H, T, D).double(), torch.ones(1, HKV, T, D).double(), draw(1, HKV, T, D, seed=1)
    q[:, 2, -1, 6] = 1.0  # the last head of group 0, in the window
    q[:, 5, 0, 8] = 9.0  # group 1, before the window
    q[:, 3, -2, 1] = 0.1
    k[..., 9] = 100.0
    layer = layer_of(method)
    layer.adopt(view(method, q, k, v))
    assert layer.old_keys.channels is not None
    assert layer.old_keys.channels.tolist() == [[[6], [1]]]


def test_a_longer_window_that_another_method_asks_for_changes_nothing() -> None:
    method, (q, k, v) = made(), tokens(1)
    q[:, :, :-5] = q[:, :, :-5].flip(-1) * 10  # the queries before the window would vote otherwise
    shared, alone = layer_of(method), layer_of(method)
    shared.adopt(view(method, q, k, v, needs=Needs(window=20)))
    alone.adopt(view(method, q, k, v))
    assert shared.old_keys.channels is not None
    assert alone.old_keys.channels is not None
    assert torch.equal(shared.old_keys.channels, alone.old_keys.channels)


def test_ties_go_to_the_lower_channel() -> None:
    assert best_channels(torch.tensor([[[1.0, 2.0, 1.0, 2.0, 1.0]]]), 3).tolist() == [[[0, 1, 3]]]


def test_bytes_are_those_of_the_kept_channels() -> None:
    method, (q, k, v) = made(), tokens(1)
    layer = layer_of(method, torch.float16)
    layer.adopt(view(method, q.half(), k.half(), v.half(), torch.float16))
    items = layer.ledger().items
    assert items["keys"] == B * HKV * (T - 4) * 6 * 2
    assert items["kept channels"] == B * HKV * 6 * 2
    assert items["recent keys"] == B * HKV * 4 * D * 2
    assert items["values"] == B * HKV * T * D * 2
    assert layer.ledger().allocated == storage_bytes(layer)
    assert layer.ledger().slack == 0


def test_rows_are_reordered_with_their_channels() -> None:
    method, (q, k, v), order = made(), tokens(1), torch.tensor([1, 1, 0])
    moved, fresh = layer_of(method), layer_of(method)
    moved.adopt(view(method, q, k, v))
    moved.reorder_cache(order)
    fresh.adopt(view(method, q[order], k[order], v[order]))
    for found, wanted in zip(moved.read(torch.float64), fresh.read(torch.float64), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("head_dim", "ratio", "kept"), [(64, 0.4, 39), (128, 0.4, 77), (128, 0.5, 64), (16, 0.4, 10), (10, 0.7, 3), (64, 0.99, 1)]
)
def test_removed_channels_are_rounded_down_as_in_kvpress(head_dim: int, ratio: float, kept: int) -> None:
    assert ThinK(key_channel_compression_ratio=ratio).kept(head_dim) == kept
