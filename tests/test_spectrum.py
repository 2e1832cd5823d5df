"""Variance spread: the measures by hand, and the model's own projections by an independent decomposition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sessions import loaded_of, opened
from telling import Told
from torch import Tensor

from kvbench.caches.cache import decoder_of, use_kvbench_attention
from kvbench.evaluators.base import BASELINE
from kvbench.evaluators.spectrum import Spectrum
from kvbench.figures import Grid, Table
from kvbench.instruments.spectra import Spread, components_for, effective_rank, kept_share, participation_ratio
from kvbench.spec import RunSpec

TOKENS = torch.randint(3, 128, (3, 70), generator=torch.Generator().manual_seed(6))
CONTEXT = 60


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_measures_by_hand() -> None:
    equal, one, mixed = values(2, 2, 2, 2), values(7, 0, 0, 0), values(4, 2, 1, 1)
    assert float(effective_rank(equal)) == pytest.approx(4, rel=1e-12)
    assert float(effective_rank(one)) == 1
    assert float(effective_rank(mixed)) == pytest.approx(math.exp(1.75 * math.log(2)), rel=1e-12)  # ½, ¼, ⅛, ⅛: 1.75 bits
    assert [float(participation_ratio(x)) for x in (equal, one, mixed)] == pytest.approx([4, 1, 64 / 22])
    assert [float(kept_share(mixed, r)) for r in (1, 2, 3, 4, 9)] == [0.5, 0.75, 0.875, 1.0, 1.0]
    assert [int(components_for(mixed, s)) for s in (0.4, 0.5, 0.51, 0.9, 1.0)] == [1, 1, 2, 4, 4]
    nothing = values(0, 0)
    assert (float(effective_rank(nothing)), float(participation_ratio(nothing)), float(kept_share(nothing, 1))) == (0.0, 0.0, 1.0)


def test_tokens_in_parts_are_tokens_at_once_and_heads_are_told_apart() -> None:
    x = torch.randn(2, 3, 40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    parts, whole = Spread(3), Spread(3)
    whole.add(x)
    for part in (x[:1, :, :11], x[:1, :, 11:], x[1:]):
        parts.add(part)
    assert parts.count == whole.count == 80
    for centred in (True, False):
        assert torch.allclose(parts.joined(centred=centred), whole.joined(centred=centred), rtol=1e-9)
        for head in range(3):
            rows = x[:, head].flatten(0, 1)
            rows = rows - rows.mean(0) if centred else rows
            assert torch.allclose(whole.by_head(centred=centred)[head], torch.linalg.svdvals(rows).square() / 80, rtol=1e-9)


@pytest.fixture(scope="module")
def model() -> Any:
    from kvbench.instruments.tiny import make_tiny_model

    made = make_tiny_model("qwen2")
    use_kvbench_attention(made)
    return made


def measured(model: Any, evaluator: Spectrum, **spec: Any) -> dict[str, Any]:
    asked = RunSpec(samples=3, context=CONTEXT, continuation=10).with_changes(**spec)
    session, seen = opened(loaded_of(model), asked, tokens=TOKENS), Told("spectrum")
    (unit,) = evaluator.units(asked, ["baseline", "snapkv"])
    assert unit.methods == (BASELINE,)
    evaluator.run(unit, session, seen)
    return seen.records


def projected(model: Any) -> dict[str, list[Tensor]]:
    """Outputs of ``k_proj`` and ``v_proj`` by layer, ``[tokens, Hkv·D]``, caught as the model itself runs."""
    caught: dict[str, list[Tensor]] = {"k_proj": [], "v_proj": []}
    hooks = [
        getattr(layer.self_attn, name).register_forward_hook(lambda _m, _i, out, name=name: caught[name].append(out.flatten(0, 1)))
        for layer in decoder_of(model).layers for name in caught
    ]  # fmt: skip
    with torch.inference_mode():
        decoder_of(model)(TOKENS[:, :CONTEXT])
    for hook in hooks:
        hook.remove()
    return caught


def test_the_models_own_projections_have_that_spectrum(model: Any) -> None:
    data = measured(model, Spectrum(ranks="4+8"))[BASELINE]["spectrum"]
    assert (data["tokens"], data["ranks"], data["kv_heads"], data["head_dim"]) == (180, [4, 8], 2, 16)
    for side, name in (("k_before_rope", "k_proj"), ("v", "v_proj")):
        for layer, rows in enumerate(projected(model)[name]):
            squares = torch.linalg.svdvals(rows - rows.mean(0)).square()
            shares = squares / squares.sum()
            found = {name: of[layer] for name, of in data[side]["joined"].items()}
            assert found["effective_rank"] == pytest.approx([float((-shares * shares.log()).sum().exp())], rel=1e-7)
            assert found["share_8"] == pytest.approx([float(shares[:8].sum())], rel=1e-7)
            assert found["components_95"] == [float((shares.cumsum(0) < 0.95).sum() + 1)]
            for head in range(2):
                own = torch.linalg.svdvals((rows - rows.mean(0))[:, 16 * head : 16 * head + 16]).square()
                ratio = data[side]["heads"]["participation"][layer][head]
                assert ratio == pytest.approx(float(own.sum().square() / own.square().sum()), rel=1e-7)


def test_rope_changes_the_keys_spread_and_batches_change_nothing(model: Any) -> None:
    alone, together = (measured(model, Spectrum(), batch_size=b)[BASELINE]["spectrum"] for b in (1, 3))
    assert alone["k"]["heads"]["effective_rank"] != alone["k_before_rope"]["heads"]["effective_rank"]
    for side in ("k_before_rope", "k", "v"):
        for layer in range(4):
            assert together[side]["joined"]["effective_rank"][layer] == pytest.approx(
                alone[side]["joined"]["effective_rank"][layer], rel=1e-7
            )
    about_zero = measured(model, Spectrum(centred=False))[BASELINE]["spectrum"]
    assert about_zero["k"]["heads"]["share_8"] != alone["k"]["heads"]["share_8"]


def test_what_is_shown(model: Any) -> None:
    records = measured(model, Spectrum(samples=1))
    assert records[BASELINE]["spectrum"]["tokens"] == CONTEXT
    found = Spectrum().summarise(records, BASELINE)[BASELINE]
    assert set(found.fields) == {
        f"spectrum_{side}_effective_rank{scope}" for side in ("k_before_rope", "k", "v") for scope in ("", "_joined")
    }
    figures = Spectrum().figures(records, BASELINE, {})
    tables, grids = ([f for f in figures if isinstance(f, kind)] for kind in (Table, Grid))
    assert [t.name for t in tables] == ["shares", "layers_heads", "layers_joined"]
    assert [len(t.rows) for t in tables if isinstance(t, Table)] == [6, 4, 4]
    assert all(len(row) == len(t.headings) for t in tables if isinstance(t, Table) for row in t.rows)
    assert [len(g.columns) for g in grids if isinstance(g, Grid)] == [6, 3]
    assert any("few tokens for 32 channels" in note for note in tables[0].notes)
    assert Spectrum().figures({}, BASELINE, {}) == []
    assert Spectrum().summarise({BASELINE: {}}, BASELINE) == {}
