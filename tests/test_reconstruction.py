"""What compressed prompts read as: every method's tokens in their places, errors by hand and by singular values, attention maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sessions import loaded_of, opened, told_by
from telling import Told
from torch import Tensor

from kvbench.caches.cache import CacheOptions, Geometry, KVCache, use_kvbench_attention
from kvbench.caches.layer import LayerContext, TokenView
from kvbench.caches.needs import Needs
from kvbench.caches.pressed import PressedLayer
from kvbench.calibration import provide
from kvbench.evaluators.attention_similarity import AttentionSimilarity
from kvbench.evaluators.base import BASELINE, Evaluator
from kvbench.evaluators.reconstruction import Reconstruction
from kvbench.figures import Grid, Table
from kvbench.instruments import fidelity
from kvbench.instruments.ladders import rungs
from kvbench.instruments.protocol import Prompt, Runner
from kvbench.instruments.session import Session
from kvbench.methods.base import Method, expand, resolve
from kvbench.metrics import losses
from kvbench.metrics.losses import Loss, Means, Point, boundary
from kvbench.models.shape import shape_of
from kvbench.spec import MethodSpec, RunSpec

TEXT = torch.randint(3, 128, (512,), generator=torch.Generator().manual_seed(5))
TOKENS = torch.randint(3, 128, (2, 130), generator=torch.Generator().manual_seed(6))
CONTEXT = 120
MORE = [
    "snapkv:window=8+int8", "adakv:alpha_safeguard=0+int8", "adakv:decode=hold", "snapkv:decode=hold", "think:recent=8",
    "kvzap:threshold=-1.1,window=16", "kvzap:threshold=-1.1,window=16+int8", "kvzap:threshold=-1.1,window=0+int8",
    "hybrid:window=8,guard=0.5,pyramid=0.4,k_bits=8,v_bits=8", "palu:group_heads=1,rank=5",
    "turboquant:recent=40", "minicache:per_head=true",
]  # fmt: skip
LABELS = [spec.label for spec in expand(["all", *MORE])]


def method_of(label: str, ratio: float = 0.5) -> Method:
    return resolve(MethodSpec.parse(label), RunSpec(compression_ratio=ratio))


@pytest.fixture(scope="module")
def runner(tiny_runner: Callable[..., Runner]) -> Runner:
    return tiny_runner()


@pytest.fixture(scope="module")
def tiny_runner() -> Callable[..., Runner]:
    """A tiny model in float64 with every artefact that the labels here read, and any cache dtype."""
    from kvbench.instruments.tiny import make_tiny_model

    model = make_tiny_model("qwen2")
    use_kvbench_attention(model)
    geometry = Geometry.of(model)
    names = {name for label in LABELS for name in method_of(label).artefacts} | {"key_pca", "value_pca"}
    artefacts = provide(names, model, geometry, TEXT, weights_hash=None, folder=None, stage=lambda *_: None)
    return lambda dtype=None: Runner(model, geometry, artefacts, CacheOptions(dtype))


def stored(runner: Runner, label: str, tokens: Tensor = TOKENS[:, :CONTEXT]) -> tuple[Prompt, KVCache]:
    method = method_of(label)
    prompt = runner.prefill(tokens, method.needs)
    return prompt, runner.compress(method, prompt)


# Every method's tokens in their places -------------------------------------------------------


@pytest.mark.parametrize("label", LABELS)
def test_what_is_restored_is_what_attention_reads(label: str, runner: Runner) -> None:
    """Softmax over the restored tokens gives the output of the layer's own ``attend``, merged and quantised ones too."""
    prompt, cache = stored(runner, label)
    q = torch.randn(2, 4, 3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for layer, view in zip(cache.layers, prompt.views, strict=True):
        read = layer.restored(view, torch.float64)
        ours = fidelity.weighed(fidelity.attention_map(q, read.keys, view.scaling, read.held), read.values)
        assert (ours - fidelity.own_output(layer, q)).abs().max() < 1e-10


@pytest.mark.parametrize("label", LABELS)
def test_tokens_stand_where_they_stood(label: str, runner: Runner) -> None:
    """An eviction's held tokens are the prompt's own at the same places; others are nearer to their own than to any other token."""
    prompt, cache = stored(runner, label)
    mixes = method_of(label).family in ("low rank", "across layers", "K/V asymmetry")
    for layer, view in zip(cache.layers, prompt.views, strict=True):
        read = layer.restored(view, torch.float64)
        assert read.keys[~read.held].abs().sum() == read.values[~read.held].abs().sum() == 0
        if label != "asymkv":
            assert int(read.held.sum()) == layer.held()
        if is_dense(label):
            assert torch.equal(read.keys[read.held], view.keys[read.held])
            assert torch.equal(read.values[read.held], view.values[read.held])
        elif not mixes:
            near = fidelity.similarity(read.keys[:, :, :, None], view.keys[:, :, None]).argmax(-1)  # [B, H, T]
            own = torch.arange(CONTEXT).expand_as(near)
            assert (near == own)[read.held].double().mean() > 0.9


def is_dense(label: str) -> bool:
    method = method_of(label)
    return "+" not in label and (method.family in ("reference", "eviction", "head-wise eviction"))


# Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_baseline_loses_nothing(dtype: torch.dtype, tiny_runner: Callable[..., Runner]) -> None:
    """Against what a cache of that dtype holds: exactly 0 and 1."""
    prompt, cache = stored(tiny_runner(dtype), "baseline")
    for record in fidelity.reconstruction(cache, prompt):
        for side in losses.SIDES:
            for over in ("all", "held"):
                every = [loss for row in losses.cells([record], side, over) for loss in row]  # type: ignore[arg-type]
                assert set(every) == {Loss(1.0, 0.0, 0.0)}
    for record in fidelity.attention(cache, prompt, [torch.randn(2, 4, 3, 16).double() for _ in prompt.views]):
        assert set(record["cosine"]) == set(record["output_cosine"]) == {1.0}
        assert set(record["tv"]) == {0.0}


@pytest.mark.parametrize("rank", [1, 5, 12, 16])
def test_v_lowrank_loses_the_discarded_singular_values(rank: int, runner: Runner) -> None:
    """On the text of its own calibration: ‖V − V̂‖² = Σ σ² over the singular values beyond the rank (Eckart and Young)."""
    prompt, cache = stored(runner, f"v_lowrank:rank={rank}", TEXT[None])
    (record,) = fidelity.reconstruction(cache, prompt)
    for layer, view in enumerate(prompt.views):
        for head in range(2):
            squares = torch.linalg.svdvals(view.values[0, head]).square()
            discarded, whole = float(squares[rank:].sum()), float(squares.sum())
            found = losses.cells([record], "v", "held")[layer][head]
            assert found is not None
            assert record["v"]["error"][layer][head] == pytest.approx(discarded, rel=1e-8, abs=1e-9)
            assert found.relative == pytest.approx(math.sqrt(discarded / whole), rel=1e-8, abs=1e-6)
            assert found.mse == pytest.approx(discarded / view.values[0, head].numel(), rel=1e-8, abs=1e-12)
        assert record["k"]["error"][layer] == [0.0, 0.0]


def test_sums_of_tokens_by_hand() -> None:
    true = torch.tensor([[[[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]]])
    read = torch.tensor([[[[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]]]])
    held = torch.tensor([[[True, True, False]]])
    found = {name: float(x) for name, x in fidelity.losses(true, read, held).items()}
    assert found == {"error": 2.0, "energy": 26.0, "energy_all": 30.0, "cosine": 1.0}
    record = {"tokens": 3, "head_dim": 2, "held": [[2]], "k": {name: [[x]] for name, x in found.items()}}
    assert losses.cells([record], "k", "held") == [[Loss(0.5, math.sqrt(2 / 26), 0.5)]]
    assert losses.cells([record], "k", "all") == [[Loss(1 / 3, math.sqrt(6 / 30), 1.0)]]
    assert losses.held_share([record]) == 2 / 3
    twice = [record, {**record, "held": [[0]], "k": {"error": [[0.0]], "energy": [[0.0]], "energy_all": [[10.0]], "cosine": [[0.0]]}}]
    assert losses.cells(twice, "k", "held") == [[Loss(0.5, math.sqrt(2 / 26), 0.5)]]
    assert losses.cells(twice, "k", "all") == [[Loss(1 / 6, math.sqrt(16 / 40), 16 / 12)]]
    assert losses.means(twice[1:], "k", "held") is None


def test_vectors_and_maps_of_nothing() -> None:
    zeros, ones = torch.zeros(3), torch.ones(3)
    assert fidelity.similarity(torch.stack((zeros, zeros, ones)), torch.stack((zeros, ones, -ones))).tolist() == [1.0, 0.0, -1.0]
    q, keys = torch.ones(1, 2, 1, 4), torch.randn(1, 2, 5, 4)
    held = torch.tensor([[[True] * 5, [False] * 5]])
    full, own = fidelity.attention_map(q, keys, 1.0), fidelity.attention_map(q, keys, 1.0, held)
    assert fidelity.total_variation(full, own).flatten().tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert fidelity.similarity(full, own).flatten().tolist() == [1.0, 0.0]


def test_the_failure_boundary_is_the_most_compressed_setting_that_keeps_a_cosine() -> None:
    def point(step: str, factor: float, cosine: float, worst: float) -> Point:
        return Point(step, factor, Means(Loss(cosine, 0.0, 0.0), 3, worst))

    points = [point("8", 2.0, 0.999, 0.995), point("4", 4.0, 0.96, 0.94), point("2", 8.0, 0.70, 0.40)]
    assert boundary(points, 0.99, "mean") == losses.Boundary(2.0, "8", is_last=False)
    assert boundary(points, 0.95, "mean") == losses.Boundary(4.0, "4", is_last=False)
    assert boundary(points, 0.95, "worst") == losses.Boundary(2.0, "8", is_last=False)
    assert boundary(points, 0.50, "mean") == losses.Boundary(8.0, "2", is_last=True)
    assert boundary(points[1:], 0.99, "mean") is None


# Attention -----------------------------------------------------------------------------------


def test_an_evictions_total_variation_is_the_attention_that_it_lost(runner: Runner) -> None:
    """p̂ = p / mass over the held tokens, so that ½ Σ|p − p̂| = 1 − mass."""
    prompt, cache = stored(runner, "snapkv")
    queries = [torch.randn(2, 4, 5, 16, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(4)]
    records = fidelity.attention(cache, prompt, queries)
    for index, (layer, view, q) in enumerate(zip(cache.layers, prompt.views, queries, strict=True)):
        keys = view.keys.repeat_interleave(2, 1)
        probs = (q @ keys.transpose(2, 3) * view.scaling).softmax(-1)
        held = layer.restored(view, torch.float64).held.repeat_interleave(2, 1)
        lost = 1 - (probs * held[:, :, None]).sum(-1).mean((1, 2))
        assert [record["tv"][index] for record in records] == pytest.approx(lost.tolist(), rel=1e-8)


METHODS = ("baseline", "snapkv", "int4", "asymkv", "pyramidkv:window=8")


def session_of(runner: Runner, batch: int) -> Session:
    """The tiny model with two windows of text."""
    spec = RunSpec(samples=2, batch_size=batch, context=CONTEXT, continuation=10)
    methods = {label: method_of(label) for label in METHODS}
    return replace(opened(loaded_of(runner.model), spec, methods, tokens=TOKENS), runner=runner)


def run(evaluator: Evaluator, session: Session) -> tuple[dict[str, Any], Mapping[str, Any]]:
    facts = evaluator.prepare(session, lambda *_: None)
    return told_by(evaluator, session).records, facts


@pytest.fixture(scope="module")
def reconstructed(runner: Runner) -> tuple[dict[str, Any], Mapping[str, Any]]:
    return run(Reconstruction(), session_of(runner, 1))


def test_reconstruction_end_to_end(reconstructed: tuple[dict[str, Any], Mapping[str, Any]]) -> None:
    records, facts = reconstructed
    found = Reconstruction().summarise(records, BASELINE)
    base, snap, pyramid = (found[label].fields for label in ("baseline", "snapkv", METHODS[-1]))
    assert (base["reconstruction_k_mse"], base["reconstruction_v_relative_error"], base["reconstruction_k_cosine"]) == (0.0, 0.0, 1.0)
    assert (snap["reconstruction_held"], snap["reconstruction_k_cosine"], snap["reconstruction_v_cosine_held"]) == (0.5, 0.5, 1.0)
    assert pyramid["reconstruction_k_worst_layer"] == 3
    assert 0.98 < found["int4"].fields["reconstruction_v_cosine"] < 1
    metrics = {m.metric: m for m in found["int4"].measured}
    assert list(metrics) == ["reconstruction_k_cosine", "reconstruction_v_cosine"]
    assert all(set(m.samples) == {"0", "1"} and m.evidence == "paired" for m in metrics.values())
    figures = {f.name: f for f in Reconstruction().figures(records, BASELINE, facts) if isinstance(f, Table)}
    assert list(figures) == ["methods", "boundaries", "sweep", "budgets"]
    assert figures["budgets"].headings == ["layer", METHODS[-1]]
    grids = [f for f in Reconstruction().figures(records, BASELINE, facts) if isinstance(f, Grid)]
    assert [g.method for g in grids] == list(METHODS[1:])
    assert (len(grids[0].rows), list(grids[0].columns)) == (4, ["K 0", "K 1", "V 0", "V 1"])
    assert all(len(row) == len(t.headings) for t in figures.values() for row in t.rows)


def test_the_sweep_costs_bytes_and_loses_more_the_further_it_goes(reconstructed: tuple[dict[str, Any], Mapping[str, Any]]) -> None:
    records, facts = reconstructed
    table = next(f for f in Reconstruction().figures(records, BASELINE, facts) if f.name == "sweep")
    assert isinstance(table, Table)
    ladders: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for title, side, _, factor, cosine, *_ in table.rows:
        ladders.setdefault((title, side), []).append((float(factor[:-1]), float(cosine)))
    assert {key for key in ladders if key[0].startswith("rank")} == {("rank", "K"), ("rank", "V"), ("rank, before RoPE", "K")}
    for points in ladders.values():
        factors, cosines = zip(*points, strict=True)
        assert list(factors) == sorted(factors)
        assert list(cosines) == sorted(cosines, reverse=True)
    half = next(row for row in table.rows if row[:3] == ["rank", "V", "8"])
    assert half[3] == "2.00×"  # of values alone: half their coefficients


def test_a_setting_of_the_sweep_that_breaks_ends_neither_the_run_nor_the_sweep(runner: Runner) -> None:
    session, evaluator = session_of(runner, 2), Reconstruction()
    seen = Told(evaluator.name)
    facts = evaluator.prepare(session, lambda *_: None)
    with_artefacts, found = session.kept[evaluator.name]
    found[0] = replace(found[0], method=SimpleNamespace(label="broken_one"))
    session.kept[evaluator.name] = with_artefacts, found
    (unit,) = evaluator.units(session.spec, METHODS)
    evaluator.run(unit, session, seen)
    table = next(f for f in evaluator.figures(seen.records, BASELINE, facts) if f.name == "sweep")
    assert any(note.startswith("broken_one could not be tried: AttributeError") for note in table.notes)
    whole = sum(len(rung.ladder.sides) for rung in found)
    assert isinstance(table, Table)
    assert len(table.rows) == whole - len(found[0].ladder.sides)


def test_a_batch_is_its_rows(runner: Runner, reconstructed: tuple[dict[str, Any], Mapping[str, Any]]) -> None:
    both, _ = run(Reconstruction(), session_of(runner, 2))
    alone, _ = reconstructed
    assert {label: set(of) for label, of in both.items()} == {label: set(of) for label, of in alone.items()}
    for label in METHODS:
        for key in ("0", "1"):
            for side in losses.SIDES:
                flat = [losses.cells([of[label][key]], side, "all") for of in (both, alone)]
                pairs = zip(*([x for row in grid for x in row] for grid in flat), strict=True)
                assert all(a is not None and b is not None and a.cosine == pytest.approx(b.cosine, rel=1e-7) for a, b in pairs)
            assert [both[label][key]["bytes"][side] for side in losses.SIDES] == [alone[label][key]["bytes"][side] for side in losses.SIDES]


def test_attention_similarity_end_to_end(runner: Runner) -> None:
    records, _ = run(AttentionSimilarity(queries=4), session_of(runner, 2))
    assert all(set(of) == {"0", "1"} for of in records.values())
    found = AttentionSimilarity().summarise(records, BASELINE)
    assert [m.metric for m in found["snapkv"].measured] == ["attention_cosine", "attention_tv", "attention_output_cosine"]
    assert found["baseline"].fields == {
        "attention_cosine": 1.0, "attention_tv": 0.0, "attention_output_cosine": 1.0, "attention_compared": "maps",
    }  # fmt: skip
    assert 0 < found["int4"].fields["attention_tv"] < found["snapkv"].fields["attention_tv"] < 1
    table, *grids = AttentionSimilarity().figures(records, BASELINE, {})
    assert isinstance(table, Table)
    assert (len(table.rows), len(grids)) == (5, 4)
    assert any("first 4 queries" in note for note in table.notes)


def test_the_queries_are_those_of_the_continuation(runner: Runner) -> None:
    """The map of the baseline equals the model's own attention of tokens 120 to 123, cut to the prompt."""
    session, seen = session_of(runner, 2), Told("attention_similarity")
    given: list[Any] = []
    original = fidelity.attention

    def spy(cache: KVCache, prompt: Prompt, queries: list[Tensor]) -> Any:
        given.append(queries)
        return original(cache, prompt, queries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "attention", spy)
        AttentionSimilarity(queries=4).run(AttentionSimilarity().units(session.spec, ["baseline"])[0], session, seen)
    whole = runner.prefill(TOKENS[:, : CONTEXT + 10], Needs(window=10))
    for queries, view in zip(given[0], whole.views, strict=True):
        assert view.observed.window is not None
        assert torch.allclose(queries, view.observed.window[:, :, :4], rtol=0, atol=1e-12)


# Presses, and layers that do not say what they read --------------------------------------------


class FakePress:
    """Returns what a press of kvpress would: fewer tokens, hidden ones, or changed keys."""

    name, needs, weights = "FakePress", Needs(), ()

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def compress(self, prompt: TokenView, context: LayerContext) -> tuple[Tensor, Tensor, Tensor | None]:
        index = torch.arange(1, 30, 3).expand(*prompt.keys.shape[:2], -1)
        part = prompt.at(index)
        if self.kind == "masks":
            mask = torch.zeros(prompt.keys.shape[:3], dtype=torch.bool)
            mask[:, 1, ::2] = True
            return prompt.keys, prompt.values, mask
        return part.keys * (1.5 if self.kind == "changes" else 1.0), part.values, None


@pytest.mark.parametrize("kind", ["prunes", "masks", "changes"])
def test_presses(kind: str, runner: Runner) -> None:
    prompt = runner.prefill(TOKENS[:, :CONTEXT], Needs())
    layers: list[Any] = [PressedLayer(replace(view.layer, dtype=torch.float64), FakePress(kind)) for view in prompt.views]  # type: ignore[arg-type]
    cache = KVCache(layers)
    cache.adopt(prompt.views)
    q = torch.randn(2, 4, 3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (record, _) = fidelity.attention(cache, prompt, [q] * 4)
    if kind == "changes":
        with pytest.raises(NotImplementedError, match="FakePress changes the keys"):
            fidelity.reconstruction(cache, prompt)
        assert set(record) == {"compared", "output_cosine"}
        assert record["compared"] == "outputs"
        return
    read = layers[0].restored(prompt.views[0], torch.float64)
    expected = torch.zeros(2, 2, CONTEXT, dtype=torch.bool)
    if kind == "prunes":
        expected[:, :, 1:30:3] = True
    else:
        expected[:, 0], expected[:, 1, 1::2] = True, True
    assert torch.equal(read.held, expected)
    assert torch.equal(read.keys[read.held], prompt.views[0].keys[read.held])
    ours = fidelity.weighed(fidelity.attention_map(q, read.keys, prompt.views[0].scaling, read.held), read.values)
    assert (ours - fidelity.own_output(layers[0], q)).abs().max() < 1e-10


def test_a_method_that_cannot_be_read_has_a_row_that_says_why() -> None:
    unread = {"unread": "Layer does not say", "bytes": {"k": 10, "v": 10, "other": 0}, "baseline_bytes": 40, "layer_bytes": [10, 10]}
    records = {"strange": {"0": unread}}
    assert Reconstruction().summarise(records, None)["strange"].fields == {}
    (table,) = Reconstruction().figures(records, None, {})
    assert isinstance(table, Table)
    assert table.rows[0][-2:] == ["2.00×", "2.00×"]
    assert "strange: Layer does not say" in table.notes


# What is asked for ---------------------------------------------------------------------------


def test_ladders_leave_out_what_does_not_fit() -> None:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 24, "vocab_size": 9}
    shape = shape_of({"model_type": "llama", **sizes})
    steps = {(r.ladder.name, r.step) for r in rungs(RunSpec(), shape)}  # heads of 12
    assert {("rank", 6), ("bits", 8)} <= steps
    assert ("bits", 3) not in steps  # 36 bits are no whole bytes


def test_units() -> None:
    spec = RunSpec(samples=6, batch_size=2)
    assert len(Reconstruction().units(spec, ["baseline"])) == 3
    assert len(Reconstruction(samples=3).units(spec, ["baseline"])) == 2
    assert len(AttentionSimilarity(samples=99).units(spec, ["baseline"])) == 3
