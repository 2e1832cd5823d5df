"""How far arithmetic alone moves a row: nothing in float64, visibly where keys are huge and the cache is coarse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from sessions import loaded_of, opened, told_by
from telling import Told
from torch import Tensor

from kvbench.caches.cache import Artefacts, CacheOptions, Geometry, use_kvbench_attention
from kvbench.calibration import provide
from kvbench.compare.align import Pair
from kvbench.compare.judge import judge
from kvbench.compare.thresholds import Threshold, check
from kvbench.evaluators.base import Measured, Summary
from kvbench.evaluators.perplexity import Perplexity
from kvbench.instruments.protocol import Runner
from kvbench.instruments.reshaped import EVERY, PIECES, SINGLY, movement, prefill, scored_again
from kvbench.instruments.scoring import TokenScores
from kvbench.methods.base import METHODS, expand, resolve
from kvbench.metrics.rounding import is_within, rounding_of
from kvbench.metrics.row import Row
from kvbench.models.weights import silent
from kvbench.report.overview import main_table, rounding_notes
from kvbench.spec import RunSpec

pytestmark = pytest.mark.fast


def scored(model: Any, methods: list[str], cache: torch.dtype, **given: Any) -> tuple[dict[str, Summary], Told]:
    """A run of perplexity on random tokens."""
    use_kvbench_attention(model)
    spec = RunSpec(methods=expand(methods), **{"samples": 1, "context": 40, "continuation": 24, **given})
    built = {m.label: resolve(m, spec) for m in spec.methods if m.label in methods}
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 128, (spec.samples, spec.context + spec.continuation), generator=draw)
    wanted = tuple(dict.fromkeys(name for method in built.values() for name in method.artefacts))
    text = torch.randint(128, (512,), generator=draw)
    artefacts: Artefacts = provide(wanted, model, Geometry.of(model), text, weights_hash=None, folder=None, stage=silent)
    told = told_by(Perplexity(), opened(loaded_of(model, cache=cache), spec, built, tokens=tokens, artefacts=artefacts))
    return Perplexity().summarise(told.records, "baseline"), told


BUILT_IN = [METHODS.load(name).trial or name for name in METHODS.names() if METHODS.load(name).in_all]
STREAMED = ["baseline", "random", "snapkv", "int8", "kivi:bits=2,residual=16,group=8"]


@pytest.mark.parametrize("protocol", ["prefill", "streaming"])
def test_in_float64_no_row_moves(tiny_model: Callable[..., Any], protocol: str) -> None:
    """Any shape is the same text in exact arithmetic, for every method: what is left is float64's own rounding."""
    methods = BUILT_IN if protocol == "prefill" else STREAMED
    found, _ = scored(tiny_model("qwen2", torch.float64), methods, torch.float64, protocol=protocol, samples=2, batch_size=2)
    assert set(found) == set(methods)
    for label, summary in found.items():
        assert summary.fields["rounding_nll"] < 1e-9, label
        assert summary.fields["rounding_kl"] < 1e-9, label
        assert summary.fields["rounding_tokens"] == (24 if protocol == "prefill" else SINGLY)


@pytest.fixture(scope="module")
def coarse() -> dict[str, Summary]:
    """Qwen2's trouble made small: key biases up to 200, a bf16 cache below float32 products."""
    from kvbench.instruments.tiny import make_tiny_model

    model = make_tiny_model("qwen2", torch.float32, num_hidden_layers=12)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.model.layers:
            bias = layer.self_attn.k_proj.bias
            bias.copy_((torch.rand(bias.shape, generator=draw) * 2 - 1).pow(5) * 200)
    return scored(model, ["baseline", "int4"], torch.bfloat16, context=128, continuation=64)[0]


def test_huge_keys_in_a_coarse_cache_move_their_row_and_it_is_seen(coarse: dict[str, Summary]) -> None:
    fields = coarse["int4"].fields
    assert fields["rounding_pct"] > 0.1, "percent of perplexity"
    assert fields["rounding_pct"] == pytest.approx(100 * math.expm1(fields["rounding_nll"]))
    assert fields["rounding_nll_max"] > fields["rounding_nll"]
    assert fields["rounding_kl"] > 1e-4
    by_metric = {m.metric: m for m in coarse["int4"].measured}
    assert by_metric["perplexity"].rounding == fields["rounding_nll"]
    assert by_metric["kl_mean"].rounding == fields["rounding_kl"]


def test_a_prompt_in_pieces_is_the_prompt(tiny_model: Callable[..., Any]) -> None:
    """Everything that a method may want to know of it."""
    from kvbench.caches.needs import Needs

    model = tiny_model("llama", torch.float64)
    use_kvbench_attention(model)
    runner = Runner(model, Geometry.of(model), {}, CacheOptions(torch.float64))
    tokens = torch.randint(3, 128, (2, 37), generator=torch.Generator().manual_seed(1))
    needs = Needs(window=8, attention=True, moments=frozenset({0, 4}), hidden=True)
    whole, pieces = runner.prefill(tokens, needs), prefill(runner, tokens, needs, PIECES)
    torch.testing.assert_close(pieces.last_hidden, whole.last_hidden, rtol=0, atol=1e-10)
    for a, b in zip(pieces.views, whole.views, strict=True):
        assert (a.seen, a.scaling, a.keys.shape) == (b.seen, b.scaling, b.keys.shape)
        assert a.keys.is_contiguous()
        assert a.values.is_contiguous()
        close(a.keys, b.keys), close(a.values, b.values), close(a.positions, b.positions)
        close(a.observed.window, b.observed.window), close(a.observed.attention, b.observed.attention)
        close(a.observed.hidden, b.observed.hidden)
        for m, n in zip(a.observed.moments, b.observed.moments, strict=True):
            for one, other in zip(m.mean_and_covariance(), n.mean_and_covariance(), strict=True):
                close(one, other)


def close(a: Tensor | None, b: Tensor | None) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("singly", [1, SINGLY])
@pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 17, 40, 511])
def test_pieces_are_the_tokens(count: int, singly: int) -> None:
    tokens = torch.arange(count)[None]
    pieces = PIECES.pieces(tokens, singly)
    assert torch.equal(torch.cat(pieces, 1), tokens)
    assert [p.shape[1] for p in pieces][: min(count, singly)] == [1] * min(count, singly)


def test_one_batch_in_some_is_walked_again_and_one_row_of_it(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama", torch.float32)
    _, kept = scored(model, ["baseline", "knorm"], torch.float32, samples=2 * (EVERY + 1), batch_size=2, context=6, continuation=4)
    with_it = [key for key, data in kept.records["knorm"].items() if "rounding" in data]
    assert with_it == ["0", str(2 * EVERY)]
    assert kept.records["knorm"]["0"]["rounding"]["tokens"] == 4


@pytest.mark.parametrize(("count", "batches", "again"), [(40, 1, 40), (512, 1, 64), (256, 8, 128), (512, 8, 256), (512, 99, 512)])
def test_a_sixteenth_of_what_is_scored_is_walked_again(count: int, batches: int, again: int) -> None:
    assert scored_again(count, batches) == again


def scores_of(nll: list[float]) -> TokenScores:
    values = torch.tensor([nll], dtype=torch.float64)
    return TokenScores(values, values.abs(), *[torch.ones_like(values)] * 3)


def test_movement_is_summed_over_tokens_and_made_wide() -> None:
    before = scores_of([1.0, 2.0, 3.0, 4.0, 9.9])
    alike, apart = ([{"rounding": movement(before, scores_of(of))}] for of in ([1.1, 2.1, 3.1, 4.1], [1.1, 1.9, 3.1, 3.9]))
    one, other = rounding_of(alike), rounding_of(apart)
    assert one is not None
    assert other is not None
    assert (one.nll, one.nll_max, one.tokens) == (pytest.approx(0.1), pytest.approx(0.1), 4)
    assert other.nll == pytest.approx(0.2 / 4), "movements that cancelled here need not cancel"
    both = rounding_of([*alike, {}, *apart])
    assert both is not None
    assert (both.nll, both.tokens) == (pytest.approx(0.1), 8)
    assert rounding_of([{}, {"rounding": None}]) is None
    with pytest.raises(FloatingPointError, match="nll"):
        movement(before, scores_of([1.0, float("nan"), 3.0, 4.0]))


def measured(nll: list[float], rounding: float | None) -> Measured:
    samples = {str(i): v for i, v in enumerate(nll)}
    value = math.exp(sum(nll) / len(nll))
    return Measured("perplexity", value, "1", "paired", "lower", samples=samples, scale="log", scoring="mean", rounding=rounding)


@pytest.mark.parametrize(("own", "other", "verdict"), [(0.03, None, "~"), (None, 0.03, "~"), (0.001, 0.002, "-"), (None, None, "-")])
def test_a_difference_smaller_than_rounding_is_not_shown(own: float | None, other: float | None, verdict: str) -> None:
    nll = [2.9, 3.1, 3.0, 2.8, 3.2, 3.05]
    worse = [v + 0.02 + 0.0001 * i for i, v in enumerate(nll)]
    (found,) = judge([Pair("int4", "perplexity", "", measured(nll, own), measured(worse, other))])
    assert found.verdict == verdict
    assert found.p is not None
    assert found.p < 0.001
    assert ("rounding" in found.note) == (verdict == "~")
    crossed = check([Threshold.parse("perplexity:+1%")], [found], ["int4"])
    assert (len(crossed.crossed), len(crossed.untested)) == ((1, 0) if verdict == "-" else (0, 1))
    assert replace(found, rounding=None).rounding is None


def test_what_was_not_measured_makes_nothing_equal() -> None:
    assert not is_within(0.0, None, None)
    assert not is_within(1e-9, None)
    assert is_within(-0.01, None, 0.02)


def row(label: str, **given: Any) -> Row:
    return replace(Row(label, "done", 1.0, None, "real", perplexity=20.0, kl=0.05), **given)


def test_tables_show_what_rounding_does_and_mark_what_is_smaller() -> None:
    found = [
        row("baseline", rounding_pct=2e-5),
        row("int4", rounding_pct=2.4, delta_pct=1.3, delta_low=1.1, delta_high=1.5, within_rounding=True),
        row("knorm", rounding_pct=0.0, delta_pct=8.0),
    ]  # fmt: skip
    table = main_table(found)
    at = {heading.split("\n")[0]: [of[i] for of in table.rows] for i, heading in enumerate(table.headings)}
    assert at["rounding"] == ["<0.001", "2.400", "0.000"]
    assert at["ΔPPL %"] == ["–", "+1.30 [+1.10, +1.50] ~", "+8.00"]
    assert len(rounding_notes(found)) == 1
    assert rounding_notes(found[::2]) == []
    assert "rounding" not in " ".join(main_table([row("knorm")]).headings)


def test_perplexitys_interval_shows_both_ends_where_it_is_not_symmetric() -> None:
    few, many = row("a", perplexity_low=2.0, perplexity_high=9e5), row("b", perplexity_low=19.5, perplexity_high=20.5)
    assert [of[1] for of in main_table([few, many]).rows] == ["20.00 [2.00, 900000]", "20.00 ± 0.50"]


def test_a_change_within_rounding_is_told_by_the_summary(coarse: dict[str, Summary]) -> None:
    fields = coarse["int4"].fields
    widest = max(coarse[label].fields["rounding_nll"] for label in coarse)
    assert fields["within_rounding"] == (abs(math.log1p(fields["ppl_delta_pct"] / 100)) < widest)
