"""KeyDiff, LagKV and PyramidKV: their rules in plain loops."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pytest
import torch
from making import method_of
from torch import Tensor

from kvbench.caches.evicted import best_tokens
from kvbench.caches.layer import LayerContext, prompt_view
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Observer

HEADS, SIZE = 2, 6


def context(layer: int = 0, layers: int = 4) -> LayerContext:
    return LayerContext(layer, layers, 2 * HEADS, HEADS, SIZE, torch.float64)


def scores(text: str, keys: Tensor, values: Tensor) -> Tensor:
    view = prompt_view(keys, values, SIZE**-0.5, Observer(Needs(), SIZE**-0.5), context())
    return method_of(text).score(view)  # type: ignore[no-any-return]


def drawn(tokens: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(tokens)
    keys, values = (torch.randn(2, HEADS, tokens, SIZE, generator=draw, dtype=torch.float64) for _ in range(2))
    return keys, values


def unit(vector: Sequence[float]) -> list[float]:
    norm = sum(x * x for x in vector) ** 0.5
    return [x / norm for x in vector]


def test_keydiff_keeps_keys_unlike_the_mean_direction() -> None:
    keys, values = drawn(9)
    got = scores("keydiff", keys, values)
    for row in range(2):
        for head in range(HEADS):
            directions = [unit(key) for key in keys[row, head].tolist()]
            anchor = unit([statistics.fmean(column) for column in zip(*directions, strict=True)])
            want = [-sum(a * b for a, b in zip(key, anchor, strict=True)) for key in directions]
            assert got[row, head].tolist() == pytest.approx(want, abs=1e-12)


def plain_spread(partition: list[list[float]], reference: list[list[float]]) -> list[float]:
    """Softmax over a partition's tokens of the spread over channels, on the scale of the next partition."""
    low, high = ([f(column) for column in zip(*reference, strict=True)] for f in (min, max))
    spread = [statistics.stdev((x - a) / (b - a) for x, a, b in zip(token, low, high, strict=True)) for token in partition]
    weights = torch.tensor(spread, dtype=torch.float64).exp()
    return (weights / weights.sum()).tolist()


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize(("tokens", "sink", "lag"), [(31, 4, 6), (24, 0, 8), (22, 2, 10)])
def test_lagkv_ranks_within_partitions_on_the_next_ones_scale(tokens: int, sink: int, lag: int, cross: bool) -> None:
    keys, values = drawn(tokens)
    got = scores(f"lagkv:n_sink={sink},lag_size={lag},cross_scoring={str(cross).lower()}", keys, values)
    partitions = (tokens - sink) // lag
    for row in range(2):
        for head in range(HEADS):
            want = [torch.finfo(torch.float64).max] * sink
            for p in range(partitions - 1):
                own, after = slice(sink + p * lag, sink + (p + 1) * lag), slice(sink + (p + 1) * lag, sink + (p + 2) * lag)
                k, v = (plain_spread(x[row, head, own].tolist(), x[row, head, after].tolist()) for x in (keys, values))
                worth = [(a + b) / 2 for a, b in zip(k, v, strict=True)]
                want += worth if cross else [sorted(worth).index(w) / lag for w in worth]
            want += [1.0] * (tokens - len(want))
            assert got[row, head].tolist() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("tokens", [3, 4, 15])
def test_lagkv_keeps_sinks_and_the_newest_where_nothing_can_be_ranked(tokens: int) -> None:
    index = best_tokens(scores("lagkv:lag_size=6", *drawn(tokens)), 3)
    assert index[0, 0].tolist() == {3: [0, 1, 2], 4: [1, 2, 3], 15: [1, 2, 3]}[tokens]
    index = best_tokens(scores("lagkv:lag_size=6,n_sink=1", *drawn(tokens)), 3)
    assert index[0, 0].tolist() == [0, tokens - 2, tokens - 1]


def test_lagkv_bears_channels_that_do_not_move() -> None:
    keys, values = drawn(30)
    keys[..., 2] = 0.5
    assert not scores("lagkv:lag_size=6", keys, values).isnan().any()
    assert not scores("lagkv:lag_size=6", torch.ones_like(keys), values).isnan().any()


def plain_budget(tokens: int, ratio: float, layer: int, layers: int, window: int, beta: int) -> int:
    """Layer budgets as kvpress 0.5.5 computes them."""
    capacity = window + tokens * (1 - ratio)
    least = (capacity - window) / beta
    most = (capacity - window) * 2 - least
    if most >= tokens - window:
        most = tokens - window
        least = (capacity - window) * 2 - most
    if not tokens >= most >= least >= window:
        return max(1, round(tokens * (1 - ratio)))
    return round(most - layer * (most - least) / (layers - 1))


@pytest.mark.parametrize("tokens", [1, 40, 127, 128, 129, 512, 2560, 4096, 13000])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize(("window", "beta"), [(64, 20), (8, 20), (8, 2), (16, 1)])
def test_pyramidkv_budgets_are_kvpress_s(tokens: int, ratio: float, window: int, beta: int) -> None:
    method = method_of(f"pyramidkv:compression_ratio={ratio},window={window},beta={beta}")
    budgets = [method.kept(tokens, context(layer, 30)) for layer in range(30)]
    assert budgets == [plain_budget(tokens, ratio, layer, 30, window, beta) for layer in range(30)]
    assert budgets == sorted(budgets, reverse=True)
    assert sum(budgets) / 30 == pytest.approx(tokens * (1 - ratio), abs=1)


@pytest.mark.parametrize(("ratio", "tokens"), [(0.5, 128), (0.75, 5120), (0.9, 12800)])
def test_pyramidkv_says_below_which_length_its_layers_keep_alike(ratio: float, tokens: int) -> None:
    method = method_of(f"pyramidkv:compression_ratio={ratio}")
    for length, alike in ((tokens - 1, True), (tokens + 1, False)):
        assert (method.kept(length, context(0, 30)) == method.kept(length, context(29, 30))) == alike


def test_pyramidkv_of_one_layer_keeps_the_mean() -> None:
    assert method_of("pyramidkv").kept(512, context(0, 1)) == 256
