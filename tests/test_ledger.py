"""Bytes counted by hand, store by store, and tensors found wherever they hide."""

from __future__ import annotations

from collections import OrderedDict, deque
from functools import partial
from typing import Any

import pytest
import torch

from kvbench.caches.buffers import BLOCK
from kvbench.caches.composed import ComposedLayer
from kvbench.caches.dense import DenseLayer
from kvbench.caches.evicted import EvictedLayer
from kvbench.caches.guarded import GuardedLayer
from kvbench.caches.layer import LayerCache, LayerContext, TokenView, prompt_view
from kvbench.caches.ledger import ByteLedger, Part, ledger_of, reachable_tensors, storage_bytes
from kvbench.caches.lowrank import ValueLowRankLayer
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Observer
from kvbench.caches.packing import Scheme
from kvbench.caches.quantised import QuantisedLayer, Side
from kvbench.caches.ragged import HeldHead, SelectedHeads
from kvbench.caches.reckon import kept_count
from kvbench.methods.snapkv import SnapKV

pytestmark = pytest.mark.fast
B, H, D, N = 2, 3, 16, 100  # rows, KV heads, head size, prompt
ROWS = B * H
LENGTH = 16  # two int64 on the device for each buffer, start and length, that a captured graph can read


class Newest:
    """Keeps the newest tokens."""

    needs = Needs()
    in_order = False

    def __init__(self, ratio: float, every: int | None = None) -> None:
        self.ratio, self.evict_every = ratio, every

    def kept(self, tokens: int, layer: LayerContext) -> int:
        return kept_count(tokens, self.ratio)

    def score(self, tokens: TokenView) -> torch.Tensor:
        return tokens.positions


def draw(seed: int, *sizes: int) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def context(dtype: torch.dtype = torch.bfloat16, **more: Any) -> LayerContext:
    return LayerContext(index=0, layers=1, heads=6, kv_heads=H, head_dim=D, dtype=dtype, **more)


def filled(layer: LayerCache, tokens: int = N) -> LayerCache:
    """``layer`` after a prompt of ``tokens``."""
    keys, values = torch.randn(2, B, H, tokens, D, generator=torch.Generator().manual_seed(0))
    layer.adopt(prompt_view(keys, values, D**-0.5, Observer(layer.needs, D**-0.5), layer.context))
    return layer


def decode(layer: LayerCache, tokens: int) -> None:
    q, k = torch.randn(B, 6, tokens, D), torch.randn(B, H, tokens, D)
    layer.extend(q, k, k.clone())


def quantised(keys: Scheme, values: Scheme, residual: int = 0) -> QuantisedLayer:
    dtype = torch.bfloat16
    return QuantisedLayer(context(), Side("keys", keys, residual, dtype), Side("values", values, residual, dtype, sliding=residual > 0))


def check(layer: LayerCache, **expected: int) -> ByteLedger:
    """The items are as counted by hand, and with the slack they are what the storages hold."""
    ledger = layer.ledger()
    wanted = {name.replace("_", " "): size for name, size in expected.items()}
    assert dict(ledger.items) == wanted
    assert ledger.stored == sum(wanted.values())
    assert ledger.allocated == storage_bytes([part.tensor for part in layer.all_parts()])
    return ledger


def test_dense() -> None:
    dense = ROWS * N * D * 2
    assert check(filled(DenseLayer(context())), keys=dense, values=dense, lengths=2 * LENGTH).slack == 0


def test_room_grows_by_blocks_and_is_slack_until_used() -> None:
    layer = filled(DenseLayer(context()))
    decode(layer, 1)
    used = ROWS * (N + 1) * D * 2
    assert check(layer, keys=used, values=used, lengths=2 * LENGTH).slack == 2 * ROWS * (BLOCK - N - 1) * D * 2


def test_evicted() -> None:
    dense = ROWS * 25 * D * 2
    check(filled(EvictedLayer(context(), Newest(0.75))), keys=dense, values=dense, lengths=2 * LENGTH)


def test_evicted_while_streaming_counts_its_positions() -> None:
    layer = EvictedLayer(context(protocol="streaming", context=40), Newest(0.5))
    decode(layer, 50)
    dense = ROWS * 20 * D * 2
    check(layer, keys=dense, values=dense, positions=ROWS * 20 * 4, lengths=3 * LENGTH)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_quantised_per_token(bits: int) -> None:
    layer = filled(quantised(Scheme(bits, 8), Scheme(8, D, symmetric=True)))
    scales = ROWS * N * (D // 8) * 2
    check(
        layer, keys_codes=ROWS * N * D * bits // 8, keys_scales=scales, keys_zero_points=scales,
        values_codes=ROWS * N * D, values_scales=ROWS * N * 2, lengths=5 * LENGTH,
    )  # fmt: skip


def test_kivi_counts_its_residuals() -> None:
    layer = filled(quantised(Scheme(3, 8, "channel"), Scheme(2, 16), residual=32))
    old, new, left = 96, N - 96, N - 32  # keys: whole residuals; values: all but the newest 32
    check(
        layer,
        keys_codes=ROWS * old * D * 3 // 8, keys_scales=ROWS * (old // 8) * D * 2, keys_zero_points=ROWS * (old // 8) * D * 2,
        residual_keys=ROWS * new * D * 2,
        values_codes=ROWS * left * D * 2 // 8, values_scales=ROWS * left * 2, values_zero_points=ROWS * left * 2,
        residual_values=ROWS * 32 * D * 2,
        lengths=8 * LENGTH,
    )  # fmt: skip


@pytest.mark.parametrize("bits", [0, 8, 4])
def test_low_rank_lists_its_basis_beside(bits: int) -> None:
    rank = 6
    basis = torch.linalg.qr(torch.randn(H, D, D))[0][..., :rank].contiguous()
    ledger_items: dict[str, int] = {"keys": ROWS * N * D * 2}
    if bits:
        ledger_items |= {"value_coefficients_codes": ROWS * N * rank * bits // 8, "lengths": 4 * LENGTH}
        ledger_items |= dict.fromkeys(("value_coefficients_scales", "value_coefficients_zero_points"), ROWS * N * 2)
    else:
        ledger_items |= {"value_coefficients": ROWS * N * rank * 2, "lengths": 2 * LENGTH}
    ledger = check(filled(ValueLowRankLayer(context(), basis, Scheme(bits, rank) if bits else None)), **ledger_items)
    assert dict(ledger.artefacts) == {"value basis": H * D * rank * 4}


def test_evicted_and_held_counts_what_it_scores_by() -> None:
    layer = filled(EvictedLayer(context(), Newest(0.75, every=4)))
    decode(layer, 7)  # 25 kept, evicted to 25 again after 4, then 3 more
    dense = ROWS * 28 * D * 2
    check(layer, keys=dense, values=dense, positions=ROWS * 28 * 4, lengths=3 * LENGTH)


def test_one_side_may_stay_dense() -> None:
    layer = QuantisedLayer(context(), Side("keys", None, 0, torch.bfloat16), Side("values", Scheme(4, 16), 0, torch.bfloat16))
    check(
        filled(layer), keys=ROWS * N * D * 2, values_codes=ROWS * N * D // 2, values_scales=ROWS * N * 2, values_zero_points=ROWS * N * 2,
        lengths=4 * LENGTH,
    )  # fmt: skip


def first_heads_more(prompt: TokenView) -> tuple[torch.Tensor, torch.Tensor]:
    """Row by row and head by head 0, 1, 2 … of the newest tokens."""
    count = torch.arange(ROWS).view(B, H, 1)
    return prompt.positions >= N - count, prompt.positions


def test_ragged_heads_store_what_each_keeps() -> None:
    layer = filled(SelectedHeads(context(), Needs(), DenseLayer, first_heads_more))
    tokens = sum(range(ROWS))
    dense = tokens * D * 2
    ledger = check(layer, keys=dense, values=dense, lengths=2 * ROWS * LENGTH)
    assert ledger.slack == 0
    assert layer.held() == tokens
    decode(layer, 2)
    assert layer.held() == tokens + 2 * ROWS


def test_ragged_heads_may_hold_their_number() -> None:
    layer = filled(SelectedHeads(context(), Needs(), lambda own: HeldHead(own, Newest(0.5, every=2)), first_heads_more))
    decode(layer, 6)
    dense = sum(range(ROWS)) * D * 2
    check(layer, keys=dense, values=dense, positions=sum(range(ROWS)) * 4, lengths=3 * ROWS * LENGTH)


def test_composed() -> None:
    guarded_layer = GuardedLayer(context(), 0.25, Scheme(3, 8), Scheme(2, 16))
    layer = filled(ComposedLayer(context(), Newest(0.6), guarded_layer))
    decode(layer, 5)
    guarded, coded = 10, 30  # of the 40 kept
    dense, recent = ROWS * guarded * D * 2, ROWS * 5 * D * 2
    check(
        layer, guarded_keys=dense, guarded_values=dense, recent_keys=recent, recent_values=recent,
        keys_codes=ROWS * coded * D * 3 // 8, keys_scales=ROWS * coded * 2 * 2, keys_zero_points=ROWS * coded * 2 * 2,
        values_codes=ROWS * coded * D * 2 // 8, values_scales=ROWS * coded * 2, values_zero_points=ROWS * coded * 2,
        lengths=10 * LENGTH,
    )  # fmt: skip


def test_a_storage_seen_twice_counts_once() -> None:
    base = torch.zeros(10, dtype=torch.float32)
    ledger = ledger_of([Part("a", base[:4], 16), Part("b", base[4:], 8)])
    assert dict(ledger.items) == {"a": 16, "b": 8}
    assert ledger.allocated == 40


def test_ledgers_add() -> None:
    total = ByteLedger({"a": 1}, 2, {"w": 3}) + ByteLedger({"a": 4, "b": 5}, 6, {})
    assert total == ByteLedger({"a": 5, "b": 5}, 8, {"w": 3})
    assert (total.stored, total.allocated) == (10, 18)


class Slotted:
    __slots__ = ("__hidden", "empty", "shown")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shown, self.__hidden = None, tensor


class Plain:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def method(self) -> None:
        """Nothing; bound to what holds the tensor."""


def closure(tensor: torch.Tensor) -> Any:
    return lambda: tensor


def with_default(tensor: torch.Tensor) -> Any:
    def function(held: torch.Tensor = tensor, *, named: torch.Tensor = tensor) -> torch.Tensor:
        return held + named

    return function


def tagged(tensor: torch.Tensor) -> torch.Tensor:
    outer = torch.zeros(1)
    outer.kept = tensor
    return outer


HIDING_PLACES: dict[str, Any] = {
    "attribute": Plain,
    "private slot": Slotted,
    "closure": closure,
    "default": with_default,
    "bound method": lambda t: Plain(t).method,
    "partial": lambda t: partial(print, t),
    "partial by name": lambda t: partial(print, end=t),
    "dict": lambda t: {"a": {"b": t}},
    "ordered dict": lambda t: OrderedDict(a=t),
    "list in a tuple": lambda t: ([1, [t]],),
    "deque": lambda t: deque([t]),
    "another tensor's attribute": tagged,
    "a view": lambda t: [t[1:]],
}


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_a_tensor_is_found(place: str) -> None:
    tensor = torch.zeros(5)
    found = reachable_tensors(HIDING_PLACES[place](tensor))
    assert tensor.untyped_storage().data_ptr() in {t.untyped_storage().data_ptr() for t in found}


def test_nothing_is_found_behind_a_stop_and_loops_end() -> None:
    artefact, loop = Plain(torch.zeros(7)), Plain(torch.zeros(3))
    loop.me, loop.artefact = loop, artefact
    assert storage_bytes(loop, [id(artefact)]) == 12
    assert storage_bytes(loop) == 12 + 28


def test_views_of_one_storage_are_one_tensor() -> None:
    base = torch.zeros(8)
    assert len(reachable_tensors([base[:2], base[2:], base])) == 1
    assert storage_bytes([base[:2], base[2:]]) == 32


@pytest.mark.parametrize(("window", "interval", "kept"), [(8, 8, 0), (8, 3, 5), (8, 1, 7), (4, 100, 0)])
def test_a_held_budget_stores_the_queries_that_its_next_scoring_reads(window: int, interval: int, kept: int) -> None:
    """No more of them than will still be in the window then, in the cache's own format, at every length of what follows."""
    method = SnapKV(decode="hold", interval=interval, window=window)
    layer = method.layer(context(torch.bfloat16))
    k, v, q = draw(1, 1, H, 24, D), draw(2, 1, H, 24, D), draw(3, 1, 6, 24, D)
    layer.forward(q, k, v, 1.0)
    for fresh in range(2 * interval + 1):
        held = layer.ledger().items
        past = fresh % interval
        assert held.get("window queries", 0) == 2 * 6 * D * max(0, min(window, window - interval + past))
        assert held["positions"] == 4 * H * (12 + past)
        assert held["keys"] == 2 * H * D * (12 + past)
        layer.forward(*(draw(100 + fresh, 1, heads, 1, D) for heads in (6, H, H)), 1.0)


def test_a_held_budget_has_room_for_what_it_holds_at_most() -> None:
    layer = SnapKV(decode="hold", interval=5, window=4).layer(context(torch.bfloat16))
    layer.forward(draw(3, 1, 6, 24, D), draw(1, 1, H, 24, D), draw(2, 1, H, 24, D), 1.0)
    room = {part.name: part.tensor.shape[2] for part in layer.parts() if part.tensor.dim() == 4}
    for _ in range(12):
        layer.forward(*(draw(7, 1, heads, 1, D) for heads in (6, H, H)), 1.0)
    assert room == {part.name: part.tensor.shape[2] for part in layer.parts() if part.tensor.dim() == 4} == dict.fromkeys(room, 12 + 5)
