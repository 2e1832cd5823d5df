"""Low-rank layers: what they lose, what folding leaves as it is, and Palu by its equations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
from making import method_of
from torch import Tensor

from kvbench.caches import folding
from kvbench.caches.basis import hadamard
from kvbench.caches.cache import Artefacts, CacheOptions, Geometry, KVCache, decoder_of, use_kvbench_attention
from kvbench.caches.heads import by_group, by_head
from kvbench.caches.ranks import heads_in_group
from kvbench.calibration import provide
from kvbench.instruments.protocol import Runner
from kvbench.instruments.tiny import make_tiny_model
from kvbench.models.shape import Shape

TEXT = torch.randint(3, 128, (512,), generator=torch.Generator().manual_seed(5))
TOKENS = torch.randint(3, 128, (2, 60), generator=torch.Generator().manual_seed(6))
KINDS = ("qwen2", "llama", "llama with biases")
"""Qwen2 has biases of queries, keys and values; the third has one of the output as well."""
FOLDING = [
    "v_lowrank", "v_lowrank:rank=5", "v_lowrank:rank=16", "v_lowrank:basis=random,rank=3", "v_lowrank:energy=0.8,per_layer=true",
    "v_lowrank:bits=8", "orthogonal:v_rank=7", "palu", "palu:rank=7", "palu:bits=3,rank=4", "palu:group_heads=1,v_rank=3,bits=8",
]  # fmt: skip


def made(kind: str) -> Any:
    model = make_tiny_model(kind.split()[0])
    if kind.endswith("biases"):
        torch.manual_seed(2)
        for layer in decoder_of(model).layers:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                projection = getattr(layer.self_attn, name)
                projection.bias = torch.nn.Parameter(0.3 * torch.randn(projection.out_features).double(), requires_grad=False)
    use_kvbench_attention(model)
    return model


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


def runner_of(model: Any, label: str, **options: Any) -> Runner:
    return Runner(model, Geometry.of(model), calibrated(model, method_of(label).artefacts), CacheOptions(None, **options))


@cache
def calibrated(model: Any, names: tuple[str, ...]) -> Artefacts:
    return provide(names, model, Geometry.of(model), TEXT, weights_hash=None, folder=None, stage=lambda *_: None)


def continued(runner: Runner, label: str, split: int = 40) -> tuple[Tensor, KVCache]:
    """Hidden states of what follows a compressed prompt, and the cache."""
    method = method_of(label)
    cache = runner.compress(method, runner.prefill(TOKENS[:, :split], method.needs))
    return runner.forward(TOKENS[:, split:], cache), cache


# What is lost -----------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["v_lowrank:rank=6", "orthogonal:k_rank=5,v_rank=9", "palu:rank=5", "palu:group_heads=1,rank=11"])
def test_the_error_of_what_is_stored_is_the_sum_of_the_discarded_eigenvalues(label: str, model: Any) -> None:
    runner, method = runner_of(model, label + ",basis=pca"), method_of(label)
    spectra = calibrated(model, tuple(name.replace("pca", "spectra") for name in method.artefacts))
    prompt = runner.prefill(TEXT[None], method.needs)
    cache = runner.compress(method, prompt)
    for index, (view, layer) in enumerate(zip(prompt.views, cache.layers, strict=True)):
        keys, values = layer.read(torch.float64)
        for name, true, read in (("key", view.keys, keys), ("value", view.values, values)):
            (eigenvalues,) = [s[index][index] for n, s in spectra.items() if name in n] or [None]
            if eigenvalues is None:
                assert torch.equal(true, read)
                continue
            store = getattr(layer, f"{name}s_store")
            lost = float(((true - read) ** 2).sum())  # a rotation changes no key's error
            assert lost == pytest.approx(float(eigenvalues[:, store.projection.rank :].sum()), rel=1e-6 if "palu" in label else 1e-9)
            assert lost > 0


def test_all_columns_lose_nothing(model: Any) -> None:
    whole, _ = continued(runner_of(model, "baseline"), "baseline")
    for label in ("v_lowrank:rank=16", "orthogonal:rank=16", "palu:rank=16", "palu:rank=16,basis=random", "orthogonal:energy=1"):
        low, _ = continued(runner_of(model, label), label)
        torch.testing.assert_close(low, whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rank_in_use_can_be_seen(kind: str) -> None:
    model = made(kind)
    ranks: dict[str, list[int]] = {}
    decoder_of(model).layers[2].self_attn.v_proj.weight[::16] *= 10  # this layer's values lie near one direction a head
    for label in ("v_lowrank", "v_lowrank:energy=0.9", "v_lowrank:energy=0.9,per_layer=true", "v_lowrank:energy=0.9,per_layer=true,bits=4"):
        _, cache = continued(runner_of(model, label), label)
        ranks[label] = [layer.rank for layer in cache.layers]
        items = [layer.ledger().items for layer in cache.layers]
        if "bits" not in label:
            assert [i["value coefficients"] for i in items] == [2 * 2 * 60 * rank * 8 for rank in ranks[label]]
    assert set(ranks["v_lowrank"]) == {8}
    assert len(set(ranks["v_lowrank:energy=0.9"])) == 1
    each = ranks["v_lowrank:energy=0.9,per_layer=true"]
    assert len(set(each)) > 1
    assert min(each) <= ranks["v_lowrank:energy=0.9"][0] <= max(each)
    assert ranks["v_lowrank:energy=0.9,per_layer=true,bits=4"] == [r + r % 2 for r in each]


# Folding ----------------------------------------------------------------------------------


@pytest.fixture
def unfolded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(folding, "PLAIN", frozenset())


@pytest.mark.parametrize("label", FOLDING)
@pytest.mark.parametrize("protocol", ["prefill", "streaming"])
def test_folded_equals_unfolded(label: str, protocol: str, model: Any, unfolded: Callable[[], None]) -> None:
    runner, method = runner_of(model, label, protocol=protocol), method_of(label)

    def scored() -> tuple[Tensor, KVCache]:
        if protocol == "prefill":
            return continued(runner, label)
        cache = runner.cache(method)
        return runner.forward(TOKENS, cache), cache

    folded, cache = scored()
    assert all(layer.fold is not None for layer in cache.layers)
    unfolded()
    plain, other = scored()
    assert all(layer.fold is None for layer in other.layers)
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-12)
    assert cache.ledger().items == other.ledger().items


def projections(model: Any) -> list[Any]:
    return [getattr(layer.self_attn, name) for layer in decoder_of(model).layers for name in ("v_proj", "o_proj")]


def test_the_model_is_left_as_it_was(model: Any) -> None:
    before, weights = projections(model), [p.weight.clone() for p in projections(model)]
    logits = model(TOKENS).logits
    runner = runner_of(model, "v_lowrank")
    continued(runner, "v_lowrank")
    assert all(a is b for a, b in zip(before, projections(model), strict=True))
    assert all(torch.equal(a, p.weight) for a, p in zip(weights, projections(model), strict=True))
    assert torch.equal(model(TOKENS).logits, logits)


def test_the_model_is_left_as_it_was_when_a_forward_fails(model: Any) -> None:
    before, runner = projections(model), runner_of(model, "v_lowrank")
    _, cache = continued(runner, "v_lowrank")
    hook = decoder_of(model).layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.forward(TOKENS[:, :1], cache)
    hook.remove()
    assert all(a is b for a, b in zip(before, projections(model), strict=True))
    assert not any(layer.folded for layer in cache.layers)


def test_what_does_not_come_through_a_runner_is_not_folded(model: Any) -> None:
    """A folded prompt's continuation through the model's ordinary call, and left-padded rows in the runner."""
    runner, label = runner_of(model, "palu"), "palu"
    _, cache = continued(runner, label)
    _, plain = continued(runner, label)
    fresh = TOKENS[:, :7]
    by_runner = runner.forward(fresh, cache)
    with torch.inference_mode():
        by_model = decoder_of(model)(input_ids=fresh, past_key_values=plain, position_ids=torch.arange(60, 67)[None]).last_hidden_state
    torch.testing.assert_close(by_runner, by_model, rtol=0, atol=1e-12)
    padded, mask = runner.cache(method_of(label)), torch.ones_like(TOKENS)
    mask[1, :9] = 0
    model(TOKENS, attention_mask=mask, past_key_values=padded)
    assert not any(folding.can_fold(layer) for layer in padded.layers)


def test_a_prompt_whose_attention_is_uncompressed_is_not_folded(model: Any) -> None:
    runner = runner_of(model, "v_lowrank:rank=2")
    own = runner.forward(TOKENS, runner.cache(method_of("v_lowrank:rank=2")))
    torch.testing.assert_close(own, decoder_of(model)(TOKENS).last_hidden_state, rtol=0, atol=1e-10)


def test_weights_are_folded_once_and_listed_beside_what_is_stored(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    fold = folding.fold
    monkeypatch.setattr(folding, "fold", lambda layer: made.append(layer.context.index) or fold(layer))
    runner = runner_of(model, "v_lowrank:rank=4")
    for _ in range(3):
        _, cache = continued(runner, "v_lowrank:rank=4")
    assert made == [0, 1, 2, 3]
    ledger, attention = cache.ledger(), decoder_of(model).layers[0].self_attn
    heads, hidden = attention.q_proj.out_features // 16, attention.q_proj.in_features
    weights = 16 * hidden + hidden * heads * 4  # 2 heads of 4 columns, filled up to one head of 16; 4 columns a query head
    biases = (16 if attention.v_proj.bias is not None else 0) + (hidden if attention.o_proj.bias is not None else 0)
    assert ledger.artefacts["folded projections"] == 4 * (weights + biases) * 8
    assert "folded projections" not in ledger.items


def test_only_the_latest_folds_are_kept(model: Any) -> None:
    runner = runner_of(model, "v_lowrank")
    for rank in range(2, 10):
        continued(runner, f"v_lowrank:rank={rank}")
    assert len(runner.folds.held) == folding.KEPT * 4
    assert {name for _, name in runner.folds.held} == {f"value_pca {rank}" for rank in range(6, 10)}


@pytest.mark.parametrize("name", sorted(folding.PLAIN))
def test_plain_attention_is_plain_in_this_version(name: str) -> None:
    """Values are cached as projected, and the sums go to the output projection as they are."""
    family = name.removesuffix("Attention").lower()
    stem = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}.get(family, family)
    source = inspect.getsource(getattr(import_module(f"transformers.models.{stem}.modeling_{stem}"), name).forward)
    lines = [line.strip() for line in source.splitlines()]
    assert [line for line in lines if line.startswith("value_states =")] == [
        "value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)"
    ]
    assert [line for line in lines if line.startswith("attn_output =")][:2] == [
        "attn_output = attn_output.reshape(*input_shape, -1).contiguous()",
        "attn_output = self.o_proj(attn_output)",
    ]


# Palu by its equations -------------------------------------------------------------------


def attention_inputs(model: Any, run: Callable[[], Any]) -> list[tuple[Tensor, Tensor]]:
    """What each layer's attention was given and gave while ``run`` ran."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        layer.self_attn.register_forward_hook(
            lambda _m, args, kwargs, out: seen.append((kwargs["hidden_states"], out[0])), with_kwargs=True
        )
        for layer in decoder_of(model).layers
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seen


def rotate(x: Tensor, position: int) -> Tensor:
    """RoPE by its definition: each pair (i, i + D/2) turned by position · 10000^(−2i/D)."""
    half = x.shape[0] // 2
    out = x.clone()
    for i in range(half):
        angle = torch.tensor(position * 10000.0 ** (-2 * i / x.shape[0]), dtype=torch.float64)
        out[i] = x[i] * angle.cos() - x[i + half] * angle.sin()
        out[i + half] = x[i + half] * angle.cos() + x[i] * angle.sin()
    return out


def quantised(latent: Tensor, bits: int) -> Tensor:
    """One token's latent, asymmetric, one scale."""
    if not bits:
        return latent
    low, step = latent.min(), (latent.max() - latent.min()) / (2**bits - 1)
    return ((latent - low) / step).round().clamp(0, 2**bits - 1) * step + low


def sylvester(size: int) -> Tensor:
    rows = [[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
    return torch.tensor(rows, dtype=torch.float64) / size**0.5


def palu_attention(attention: Any, x: Tensor, key_basis: Tensor, value_basis: Tensor, bits: int) -> Tensor:
    """arXiv 2407.21118 for one sequence ``x`` ``[T, hidden]``, token by token and head by head; one group of two KV heads."""
    mix = sylvester(key_basis.shape[1]) if bits else torch.eye(key_basis.shape[1]).double()
    bias = {n: 0 if (b := getattr(attention, n).bias) is None else b for n in ("q_proj", "k_proj", "v_proj", "o_proj")}
    keys, values = [], []
    for t, token in enumerate(x):
        latent_k = quantised(mix.T @ key_basis.T @ (attention.k_proj.weight @ token), bits)
        latent_v = quantised(mix.T @ value_basis.T @ (attention.v_proj.weight @ token), bits)
        key = key_basis @ mix @ latent_k + bias["k_proj"]
        keys.append([rotate(head, t) for head in key.split(16)])
        values.append((value_basis @ mix @ latent_v + bias["v_proj"]).split(16))
    outs = []
    for t, token in enumerate(x):
        query = (attention.q_proj.weight @ token + bias["q_proj"]).split(16)
        sums = []
        for h, q in enumerate(query):
            kv = h // (len(query) // 2)
            turned = rotate(q, t)
            scores = torch.stack([turned @ keys[s][kv] / 16**0.5 for s in range(t + 1)]).softmax(0)
            sums.append(sum(p * values[s][kv] for s, p in enumerate(scores)))
        outs.append(attention.o_proj.weight @ torch.cat(sums) + bias["o_proj"])
    return torch.stack(outs)


@pytest.mark.parametrize("bits", [0, 3])
def test_palu_is_its_equations(bits: int, model: Any) -> None:
    label = f"palu:rank=4,bits={bits}"
    runner = runner_of(model, label, protocol="streaming")
    seen = attention_inputs(model, lambda: runner.forward(TOKENS[:1, :20], runner.cache(method_of(label))))
    for index, (x, out) in enumerate(seen):
        key_basis, value_basis = (runner.artefacts[f"projected_{side}_pca/0"][index][0, :, :8] for side in ("key", "value"))
        slow = palu_attention(decoder_of(model).layers[index].self_attn, x[0], key_basis, value_basis, bits)
        torch.testing.assert_close(out[0], slow, rtol=0, atol=1e-6)  # the model's own rotary tables are float32


@pytest.mark.parametrize("size", [1, 2, 3, 6, 8, 20, 32, 96])
def test_the_rotation_is_orthogonal_and_spreads(size: int) -> None:
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size).double(), rtol=0, atol=1e-12)
    odd = size // (size & -size)
    assert float(matrix.abs().max()) <= (2.0 if odd > 1 else 1.0) ** 0.5 / size**0.5 + 1e-12
    if odd == 1:
        torch.testing.assert_close(matrix, sylvester(size), rtol=0, atol=1e-12)


def test_a_rotation_changes_nothing_but_rounding(model: Any) -> None:
    fine = {h: continued(runner_of(model, "palu:bits=8"), f"palu:bits=8,hadamard={h}")[0] for h in ("true", "false")}
    dense, _ = continued(runner_of(model, "palu"), "palu")
    assert float((fine["true"] - fine["false"]).abs().max()) > 1e-6
    for hidden in fine.values():
        assert float((hidden - dense).norm() / dense.norm()) < 0.1


def test_rotating_is_the_models_own(model: Any) -> None:
    rope = Geometry.of(model).rope
    x = torch.randn(2, 3, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for first in (0, 37):
        turned = rope.rotate(x, first)
        slow = torch.stack([rotate(token, first + i % 9) for i, token in enumerate(x.view(-1, 16))]).view_as(x)
        torch.testing.assert_close(turned, slow, rtol=0, atol=1e-4)
        torch.testing.assert_close(rope.unrotate(turned, first), x, rtol=0, atol=1e-12)
    assert rope.rotate(x.bfloat16(), 0).dtype == torch.float32


def test_palu_does_not_store_what_an_eviction_leaves(model: Any) -> None:
    runner, method = runner_of(model, "palu"), method_of("palu")
    views = runner.prefill(TOKENS, method.needs).views
    index = torch.arange(0, 60, 2).expand(2, 2, 30)
    with pytest.raises(ValueError, match="stores every token"):
        runner.cache(method).layers[0].compress(views[0].at(index))


# Conformance and refusals ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "kv_heads", "says"),
    [
        ("orthogonal:rank=65", 2, "rank=65 is above the head size; the largest is 64"),
        ("orthogonal:k_rank=8,v_rank=70", 2, "v_rank=70 is above the head size; the largest is 64"),
        ("palu:k_rank=100", 2, "k_rank=100 is above the head size; the largest is 64"),
        ("orthogonal_int4:rank=7", 2, "rank=7 is odd, and two 4-bit codes fill a byte; the nearest even rank is 6"),
        ("palu:group_heads=4,bits=3,rank=5", 8, "rank=5: 20 codes of 3 bits do not fill whole bytes; the nearest that does is 4"),
        ("palu:group_heads=1,bits=4,rank=5", 8, "rank=5 is odd, and two 4-bit codes fill a byte; the nearest even rank is 4"),
        ("palu:group_heads=3", 8, "group_heads=3 does not divide the KV heads, 8; the nearest that does is 2"),
        ("palu:group_heads=4", 6, "group_heads=4 does not divide the KV heads, 6; the nearest that does is 3"),
    ],
)
def test_a_value_that_does_not_fit_the_model_is_refused(label: str, kv_heads: int, says: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are compared below)
        method_of(label).check(Shape(4, 2 * kv_heads, kv_heads, 64, 512, 128, 2048))
    assert str(caught.value) == says


def test_a_default_rank_that_energy_replaces_is_not_asked_for() -> None:
    with pytest.raises(ValueError, match="rank=33 is odd"):
        method_of("v_lowrank:bits=4").check(Shape(4, 4, 2, 66, 512, 128, 2048))
    method_of("v_lowrank:bits=4,energy=0.9").check(Shape(4, 4, 2, 66, 512, 128, 2048))


@pytest.mark.parametrize(
    ("label", "kv_heads", "together"), [("palu:group_heads=4", 3, 3), ("palu:group_heads=4", 8, 4), ("palu", 5, 1), ("palu:bits=3", 6, 3)]
)
def test_groups_are_clipped_to_the_heads_there_are(label: str, kv_heads: int, together: int) -> None:
    method = method_of(label)
    method.check(Shape(4, 2 * kv_heads, kv_heads, 64, 512, 128, 2048))
    assert heads_in_group(method.group_heads, kv_heads) == together  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_heads_taken_together_come_apart_again() -> None:
    x = torch.arange(2 * 4 * 3 * 5).view(2, 4, 3, 5)  # [B, Hkv, T, D]
    together = by_group(x, 2)
    assert together.shape == (2, 2, 3, 10)
    assert torch.equal(together[:, 1], torch.cat((x[:, 2], x[:, 3]), -1)), "neighbours, side by side"
    assert torch.equal(by_head(together, 2), x)
    assert torch.equal(by_head(by_group(x, 1), 1), x)
