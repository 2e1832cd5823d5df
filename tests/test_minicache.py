"""MiniCache against its equations, token by token in plain float64, and what the two layers of a pair hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from making import draw
from torch import Tensor

from kvbench.caches.layer import LayerContext, prompt_view
from kvbench.caches.ledger import ledger_of, storage_bytes
from kvbench.caches.merged import MergedLayer, MergedStates, angle, slerp, too_far
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Observer
from kvbench.methods.minicache import MiniCache
from kvbench.models.shape import Shape

B, H, HKV, T, D = 2, 4, 2, 23, 8
SCALING = D**-0.5


def neighbours(seed: int, tokens: int = T) -> tuple[Tensor, Tensor]:
    """Two layers' states, near each other but for two tokens in one row and one in the other."""
    lower = draw(B, HKV, tokens, D, seed=seed)
    upper = 1.7 * lower + 0.3 * draw(B, HKV, tokens, D, seed=seed + 1)
    for row, token in ((0, 3), (0, 11), (1, 7)):
        upper[row, :, token] = draw(HKV, D, seed=seed + 2 + token)
    return lower, upper


# The paper's equations, one token at a time -------------------------------------------------


def norm(x: list[float]) -> float:
    return math.sqrt(sum(a * a for a in x))


def arc(x: list[float], y: list[float]) -> float:
    cosine = sum(a * b for a, b in zip(x, y, strict=True)) / (norm(x) * norm(y))
    return math.acos(max(-1.0, min(1.0, cosine)))


def merged_direction(lower: list[float], upper: list[float], t: float) -> list[float]:
    """Eq. 3."""
    omega = arc(lower, upper)
    left, right = math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)
    return [left * a / norm(lower) + right * b / norm(upper) for a, b in zip(lower, upper, strict=True)]


def unmerged(lower: list[list[float]], upper: list[list[float]], gamma: float) -> set[int]:
    """The tokens whose similarity 1 − Ω/π is below its smallest plus gamma of its range."""
    alike = [1 - arc(x, y) / math.pi for x, y in zip(lower, upper, strict=True)]
    limit = min(alike) + gamma * (max(alike) - min(alike))
    return {i for i, d in enumerate(alike) if d < limit}


def restored(lower: Tensor, upper: Tensor, t: float, gamma: float) -> tuple[Tensor, Tensor, set[int]]:
    """Both layers' states ``[T, W]`` as they are read back (Eq. 2), and the tokens left alone."""
    low, up = lower.tolist(), upper.tolist()
    alone = unmerged(low, up, gamma)
    both: list[list[list[float]]] = [[], []]
    for i, (x, y) in enumerate(zip(low, up, strict=True)):
        e = merged_direction(x, y, t)
        for out, own in zip(both, (x, y), strict=True):
            out.append(own if i in alone else [norm(own) * a for a in e])
    return torch.tensor(both[0], dtype=torch.float64), torch.tensor(both[1], dtype=torch.float64), alone


def reference(lower: Tensor, upper: Tensor, t: float, gamma: float, per_head: bool) -> tuple[Tensor, Tensor, int]:
    """As :func:`restored`, for each row of ``[B, Hkv, T, D]`` and, with ``per_head``, each head by itself."""
    outs, count = (torch.empty_like(lower), torch.empty_like(upper)), 0
    for row in range(lower.shape[0]):
        for heads in [slice(h, h + 1) for h in range(HKV)] if per_head else [slice(0, HKV)]:
            flat = [x[row, heads].transpose(0, 1).flatten(1) for x in (lower, upper)]
            *both, alone = restored(flat[0], flat[1], t, gamma)
            count += len(alone)
            for out, own in zip(outs, both, strict=True):
                out[row, heads] = own.unflatten(1, (-1, D)).transpose(0, 1)
    return *outs, count


# ---------------------------------------------------------------------------------------------


def states(lower: Tensor, upper: Tensor, dtype: torch.dtype = torch.float64, **how: Any) -> MergedStates:
    return MergedStates("key", lower, upper, **{"t": 0.6, "gamma": 0.05, "per_head": False, **how}, dtype=dtype)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(("t", "gamma"), [(0.6, 0.05), (0.5, 0.0), (0.3, 0.5), (1.0, 0.2)])
def test_states_are_restored_as_the_paper_s_equations_say(t: float, gamma: float, per_head: bool) -> None:
    lower, upper = neighbours(1)
    merged = states(lower, upper, t=t, gamma=gamma, per_head=per_head)
    low, up, count = reference(lower, upper, t, gamma, per_head)
    torch.testing.assert_close(merged.read(0, torch.float64), low, rtol=0, atol=1e-12)
    torch.testing.assert_close(merged.read(1, torch.float64), up, rtol=0, atol=1e-12)
    assert merged.tokens.numel() == count
    assert (count == 0) == (gamma == 0)


def test_unmerged_tokens_come_back_bit_for_bit_and_rows_keep_their_own_number() -> None:
    lower, upper = neighbours(1)
    merged = states(lower, upper, gamma=0.6)
    rows = [[int(i) % T for i in merged.tokens if int(i) // T == row] for row in range(B)]
    assert {3, 11} <= set(rows[0])
    assert 7 in rows[1]
    assert len(rows[0]) != len(rows[1])
    for row, tokens in enumerate(rows):
        assert torch.equal(merged.read(0, torch.float64)[row, :, tokens], lower[row, :, tokens])
        assert torch.equal(merged.read(1, torch.float64)[row, :, tokens], upper[row, :, tokens])


def test_magnitudes_are_each_layer_s_own() -> None:
    lower, upper = neighbours(1)
    merged = states(lower, upper, gamma=0.0)
    for side, own in enumerate((lower, upper)):
        lengths = merged.read(side, torch.float64).transpose(1, 2).flatten(2).norm(dim=-1)
        torch.testing.assert_close(lengths, own.transpose(1, 2).flatten(2).norm(dim=-1), rtol=1e-12, atol=0)


def test_t_is_the_way_from_the_lower_to_the_upper_direction() -> None:
    a, b = (torch.nn.functional.normalize(draw(5, D, seed=s), dim=-1) for s in (1, 2))
    omega = angle(a, b)
    torch.testing.assert_close(omega, (a * b).sum(-1).acos(), rtol=0, atol=1e-12)
    for t in (0.0, 0.25, 0.6, 1.0):
        between = slerp(a, b, t)
        torch.testing.assert_close(between.norm(dim=-1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(angle(a, between), t * omega, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_directions_are_lossless_and_nothing_is_ever_nan(dtype: torch.dtype) -> None:
    lower = draw(B, HKV, T, D, seed=1).to(dtype)
    same = states(lower, 3 * lower, dtype)
    torch.testing.assert_close(same.read(0, dtype), lower)
    torch.testing.assert_close(same.read(1, dtype), 3 * lower)
    upper = -lower
    upper[0, :, 4] = 0
    lower[0, :, 5] = 0
    lower[1, :, 6] = upper[1, :, 6] = 0
    odd = states(lower, upper, dtype, gamma=0.0)
    assert odd.read(0, dtype).isfinite().all()
    assert odd.read(1, dtype).isfinite().all()
    assert not odd.read(1, dtype)[0, :, 4].any()


def test_the_threshold_is_a_share_of_the_range_not_of_the_tokens() -> None:
    distance = torch.tensor([[0.10, 0.11, 0.49, 0.50, 0.12]], dtype=torch.float64)
    assert too_far(distance, 0.05).tolist() == [[False, False, True, True, False]]
    assert too_far(distance, 0.0).tolist() == [[False] * 5]
    assert too_far(distance, 0.99).sum() == 4
    assert not too_far(torch.full((1, 3), 0.2), 0.5).any()


def layer(index: int, dtype: torch.dtype = torch.float64, **how: Any) -> MergedLayer:
    context = LayerContext(index, 4, H, HKV, D, dtype)
    return MergedLayer(context, **{"t": 0.6, "gamma": 0.05, "per_head": False, **how})


def pair(dtype: torch.dtype = torch.float64, **how: Any) -> tuple[MergedLayer, MergedLayer]:
    lower, upper = layer(2, dtype, **how), layer(3, dtype, **how)
    upper.pair_with(lower)
    return lower, upper


def adopt(layer: MergedLayer, keys: Tensor, values: Tensor) -> None:
    layer.adopt(prompt_view(keys, values, SCALING, Observer(Needs(), SCALING), layer.context))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal at the end, plainly."""
    k, v = (x.repeat_interleave(H // HKV, 1) for x in (k, v))
    m, total = q.shape[2], k.shape[2]
    visible = torch.ones(m, total, dtype=torch.bool).tril(total - m)
    return (q @ k.transpose(2, 3) * SCALING).masked_fill(~visible, float("-inf")).softmax(-1) @ v


def test_both_layers_attend_to_the_merged_prompt_and_their_own_fresh_tokens() -> None:
    keys, values = neighbours(1), neighbours(50)
    layers = pair()
    for one, k, v in zip(layers, keys, values, strict=True):
        adopt(one, k, v)
    merged_keys, merged_values = reference(*keys, 0.6, 0.05, False), reference(*values, 0.6, 0.05, False)
    for side, one in enumerate(layers):
        q, k, v = draw(B, H, 5, D, seed=80 + side), draw(B, HKV, 5, D, seed=90 + side), draw(B, HKV, 5, D, seed=95 + side)
        wanted = attention(q, torch.cat((merged_keys[side], k), 2), torch.cat((merged_values[side], v), 2))
        torch.testing.assert_close(one.extend(q, k, v), wanted, rtol=0, atol=1e-12)
        assert one.length == one.get_seq_length() == T + 5


def test_the_lower_layer_is_dense_until_its_partner_compresses_and_then_no_copy_is_left() -> None:
    lower, upper = pair(torch.float32, gamma=0.0)
    keys, values = ([x.float() for x in neighbours(s)] for s in (1, 50))
    adopt(lower, keys[0], values[0])
    dense = 2 * B * HKV * T * D * 4
    assert lower.ledger().items == {"keys": dense // 2, "values": dense // 2, "lengths": 32}
    q = draw(B, H, 1, D, seed=3).float()
    torch.testing.assert_close(lower.attend(q), attention(q, keys[0], values[0]))
    adopt(upper, keys[1], values[1])
    magnitudes = 2 * B * T * 4
    assert lower.ledger().stored == magnitudes
    assert upper.ledger().stored == magnitudes + dense  # every direction of the two layers, once
    assert ledger_of([*lower.parts(), *upper.parts()]).allocated == storage_bytes([lower, upper])
    assert lower.length == upper.length == T


def test_stored_bytes_are_those_of_one_layer_and_a_little() -> None:
    """A pair keeps W numbers and two magnitudes of a merged token, 2 W numbers and an index of an unmerged one."""
    lower, upper = pair(torch.float16, gamma=0.3)
    keys, values = neighbours(1), neighbours(50)
    for side, one in enumerate((lower, upper)):
        adopt(one, keys[side].half(), values[side].half())
    assert upper.merged is not None
    wide, found = HKV * D, lower.ledger() + upper.ledger()
    for name, states in zip(("key", "value"), upper.merged, strict=True):
        n = states.tokens.numel()
        assert 0 < n < B * T // 2
        assert found.items[f"{name} directions"] == (B * T - n) * wide * 2
        assert found.items[f"{name} magnitudes"] == 2 * (B * T - n) * 2
        assert found.items[f"unmerged {name}s"] == 2 * n * wide * 2
        assert found.items[f"unmerged {name} tokens"] == n * 4
    assert found.slack == 0
    assert found.stored < 2 * 2 * B * T * wide * 2


def test_layers_of_different_prompts_are_refused() -> None:
    lower, upper = pair()
    adopt(lower, draw(1, HKV, 4, D, seed=1), draw(1, HKV, 4, D, seed=2))
    with pytest.raises(RuntimeError, match="must see the same tokens"):
        adopt(upper, draw(1, HKV, 5, D, seed=1), draw(1, HKV, 5, D, seed=2))


@pytest.mark.parametrize("per_head", [False, True])
def test_rows_are_reordered_once_for_both_layers(per_head: bool) -> None:
    keys, values, order = neighbours(1), neighbours(50), torch.tensor([1, 1, 0])
    moved, fresh = pair(gamma=0.4, per_head=per_head), pair(gamma=0.4, per_head=per_head)
    for side in (0, 1):
        adopt(moved[side], keys[side], values[side])
        adopt(fresh[side], keys[side][order], values[side][order])
    for one in moved:
        one.reorder_cache(order)
    for one, other in zip(moved, fresh, strict=True):
        for found, wanted in zip(one.read(torch.float64), other.read(torch.float64), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        assert one.merged is not None
        assert other.merged is not None
        for found_states, wanted_states in zip(one.merged, other.merged, strict=True):
            assert torch.equal(found_states.tokens, wanted_states.tokens)
        assert one.ledger() == other.ledger()


@pytest.mark.parametrize(
    ("start", "layers", "pairs"),
    [
        (0.5, 32, [(i, i + 1) for i in range(16, 32, 2)]),
        (0.5, 30, [(i, i + 1) for i in range(15, 29, 2)]),  # layer 29 has no partner
        (0.5, 4, [(2, 3)]),
        (0.5, 3, [(1, 2)]),
        (0.5, 2, [(0, 1)]),
        (0.3, 10, [(3, 4), (5, 6), (7, 8)]),
        (0.0, 5, [(0, 1), (2, 3)]),
        (0.99, 30, [(28, 29)]),
    ],
)
def test_pairs_of_any_number_of_layers(start: float, layers: int, pairs: list[tuple[int, int]]) -> None:
    assert MiniCache(start=start).pairs(layers) == pairs


def test_a_model_of_one_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="layers are merged in pairs"):
        MiniCache().check(Shape(1, 4, 2, 64, 256, 128, 2048))
