"""KVzap: which tokens a query sees, what the surrogate learns, and which weights are read."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from making import draw, method_of
from safetensors.torch import save_file
from torch import Tensor, nn

import kvbench
from kvbench.caches.cache import Geometry, capture_cache, captured, decoder_of, use_kvbench_attention
from kvbench.caches.layer import LayerContext, TokenView, prompt_view
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Observer
from kvbench.caches.surrogate import part_names, surrogate_scores
from kvbench.caches.threshold import EVERY, SurrogateHeads
from kvbench.calibration import provide, surrogate_weights
from kvbench.calibration.artefacts import save_tensors
from kvbench.calibration.regression import NormalEquations, best_strength, fit_network, spread
from kvbench.calibration.replay import cut, output_blocks, replay, targets
from kvbench.calibration.source import Source
from kvbench.cli import main
from kvbench.errors import ModelError, UsageError
from kvbench.instruments.conformance import Bench, Sizes
from kvbench.instruments.tiny import make_tiny_model
from kvbench.instruments.verify import on_tiny
from kvbench.spec import MethodSpec

pytestmark = pytest.mark.fast
B, HKV, G, D, HIDDEN = 2, 2, 3, 8, 12
NAME = "surrogate:linear"
EXAMPLE = torch.randint(3, 128, (512,), generator=torch.Generator().manual_seed(3))


# Which tokens a query sees ------------------------------------------------------------------------------------------


class Tokens:
    """Random queries, keys, values and hidden states, and a linear surrogate with a median score near 0."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.q, self.k, self.v = (draw(B, heads, total, D, seed=i) for i, heads in enumerate((HKV * G, HKV, HKV)))
        self.hidden = draw(B, total, HIDDEN, seed=3)
        self.artefacts = {f"{NAME}/w1": draw(HKV, HIDDEN, seed=4), f"{NAME}/b1": draw(HKV, seed=5) / 4}
        self.scores = surrogate_scores(self.hidden, self.artefacts, NAME)

    def layer(self, threshold: float, window: int, protocol: Any) -> SurrogateHeads:
        context = LayerContext(0, 1, HKV * G, HKV, D, torch.float64, protocol=protocol, artefacts=self.artefacts)
        return SurrogateHeads(context, NAME, threshold, window)

    def forward(self, layer: SurrogateHeads, start: int, end: int) -> Tensor:
        layer.hidden = self.hidden[:, start:end]
        return layer.forward(self.q[:, :, start:end], self.k[:, :, start:end], self.v[:, :, start:end], 0.3)


def reference(tokens: Tokens, threshold: float, window: int, row: int, head: int, i: int) -> Tensor:
    """Query i of a head by the rule as it is written: every token up to i that is near, or passed."""
    kv = head // G
    seen = [j for j in range(i + 1) if i - j <= window or tokens.scores[row, kv, j] >= threshold]
    weights = (tokens.k[row, kv, seen] @ tokens.q[row, head, i] * 0.3).softmax(0)
    return weights @ tokens.v[row, kv, seen]


@pytest.mark.parametrize("window", [0, 5, 40])
@pytest.mark.parametrize("cuts", [[], [1, 2, 9, 10, 60, 61, 75, 76, 200, 201]], ids=["one block", "uneven"])
@pytest.mark.parametrize("prompt", [0, 3, 70])
def test_a_query_sees_what_is_near_and_what_passed(prompt: int, cuts: list[int], window: int) -> None:
    tokens, threshold = Tokens(230), 0.1
    layer = tokens.layer(threshold, window, "prefill" if prompt else "streaming")
    if prompt:
        tokens.forward(layer, 0, prompt)
    ends = [prompt, *(c for c in cuts if prompt < c < 230), 230]
    found = torch.cat([tokens.forward(layer, a, b) for a, b in pairwise(ends)], 2)
    for i in (prompt, prompt + 1, prompt + 37, 117, 150, 229):
        for row, head in ((0, 0), (0, 5), (1, 3)):
            torch.testing.assert_close(found[row, head, i - prompt], reference(tokens, threshold, window, row, head, i), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seen", [70, 100, 230])
def test_what_was_dropped_takes_no_room_after_at_most_so_many_tokens(seen: int) -> None:
    window, threshold, prompt = 20, 0.1, 70
    tokens = Tokens(230)
    layer = tokens.layer(threshold, window, "prefill")
    tokens.forward(layer, 0, prompt)
    if seen > prompt:
        tokens.forward(layer, prompt, seen)
    tested = max(prompt - window, seen - seen % EVERY - window)
    passed = (tokens.scores[:, :, :tested] >= threshold).sum()
    assert 0 < passed < B * HKV * tested
    assert layer.held() == passed + B * HKV * (seen - tested)
    items = layer.ledger().items
    assert items["keys"] == layer.held() * D * 8
    assert items["verdicts"] == B * HKV * (seen - tested)


@pytest.mark.parametrize(("threshold", "share"), [(-1e9, 1.0), (1e9, 0.0)])
def test_all_may_pass_and_none(threshold: float, share: float) -> None:
    tokens = Tokens(96)
    layer = tokens.layer(threshold, 0, "prefill")
    tokens.forward(layer, 0, 50)
    found = tokens.forward(layer, 50, 96)
    assert layer.held() == share * B * HKV * 96
    torch.testing.assert_close(found[1, 4, 9], reference(tokens, threshold, 0, 1, 4, 59), rtol=0, atol=1e-12)


def test_a_score_at_the_threshold_is_kept() -> None:
    tokens = Tokens(80)
    exact = float(tokens.scores[0, 0, 7])
    layer = tokens.layer(exact, 16, "prefill")
    tokens.forward(layer, 0, 80)
    assert layer.cells[0][0].length == int((tokens.scores[0, 0, :64] >= exact).sum()) + 16
    assert bool((layer.cells[0][0].read(torch.float64)[0][0, 0] == tokens.k[0, 0, 7]).all(-1).any())


def test_the_trial_drops_some_tokens_and_keeps_some(family: str) -> None:
    method = method_of(method_of("kvzap").trial)
    bench = Bench(method, family, Sizes())
    _, cache = bench.scored(bench.runner(), bench.tokens)
    least, most = 2 * 2 * 4 * method.window, 2 * 2 * 4 * 290
    assert least < cache.keys_held() < most


def test_verify_tries_it_where_it_finds_something_to_drop() -> None:
    assert on_tiny(MethodSpec.parse("kvzap")).label == method_of("kvzap").trial
    assert on_tiny(MethodSpec.parse("kvzap:window=8")).label == "kvzap:window=8"
    assert on_tiny(MethodSpec.parse("knorm")).label == "knorm"


def test_two_surrogates_serve_one_prompt() -> None:
    """What one prefill gathers for both is what each gathers alone."""
    both, one = Needs(surrogate=("a", "b")), Needs(surrogate=("b",))
    artefacts = {name: draw(*shape, seed=i) for i, s in enumerate("ab") for name, shape in zip(part_names(s), [(2, 6), (2,)], strict=False)}
    hidden, q = draw(1, 9, 6, seed=8), draw(1, 2, 9, 4, seed=9)
    views = []
    for needs in (both, one):
        observer = Observer(needs, 1.0, None, artefacts)
        observer.follow(q, q, 0, hidden)
        views.append(prompt_view(q, q, 1.0, observer, LayerContext(0, 1, 2, 2, 4, torch.float64)))
    assert torch.equal(views[0].observed.surrogate("b"), views[1].observed.surrogate("b"))
    assert not torch.equal(views[0].observed.surrogate("a"), views[0].observed.surrogate("b"))
    assert (one | Needs(surrogate=("a",))) == both


# What the surrogate learns -------------------------------------------------------------------------------------------


def slow_targets(view: TokenView, hidden: Tensor, output: Tensor, length: int) -> Tensor:
    """The score as kvpress' training code writes it, a_ji ‖W_O v_i‖ / ‖h_j‖: its largest, and then the logarithm; loops only."""
    q, k, v = view.observed.window, view.keys[0], view.values[0]
    assert q is not None
    heads, kv_heads, total, d = q.shape[1], k.shape[0], k.shape[1], k.shape[2]
    scores = torch.zeros(kv_heads, length, dtype=torch.float64)
    for head in range(heads):
        kv = head // (heads // kv_heads)
        block = output[:, head * d : (head + 1) * d]
        for j in range(length):
            at = total - length + j
            attention = (k[kv, : at + 1] @ q[0, head, j] * view.scaling).exp()
            attention = attention / attention.sum() / hidden[0, at].norm()
            for i in range(length):
                scores[kv, i] = max(float(scores[kv, i]), float(attention[i] * (block @ v[kv, i]).norm()))
    return scores.log()


def test_targets_are_the_papers(family: str) -> None:
    length, sample = 9, EXAMPLE[:9]
    ids = torch.cat((sample, EXAMPLE[20:24], sample))
    model = make_tiny_model(family)
    use_kvbench_attention(model)
    geometry = Geometry.of(model)
    cache = capture_cache(geometry, Needs(window=length, hidden=True))
    states: list[Tensor] = []
    for norm in (layer.input_layernorm for layer in model.model.layers):
        norm.register_forward_hook(lambda _m, _a, out: states.append(out))
    with torch.inference_mode():
        decoder_of(model)(input_ids=ids[None], past_key_values=cache, use_cache=True)
        for view, module, hidden in zip(captured(cache), geometry.modules, states, strict=True):
            assert view.observed.hidden is not None
            assert torch.equal(view.observed.hidden, hidden)
            found = targets(view, hidden, output_blocks(module, view), length)[0]
            torch.testing.assert_close(found, slow_targets(view, hidden, module.o_proj.weight, length), rtol=0, atol=1e-12)  # type: ignore[arg-type, union-attr]


def test_a_token_without_a_target_is_left_out(tiny: Source) -> None:
    """The padding token of these models has a zero embedding, so its state and its value are zero in the first layer."""
    sample = EXAMPLE[:40].clone()
    sample[[4, 30]] = 0
    first, second = list(replay(tiny, sample))[:2]
    assert len(first[0]) == len(first[1]) == 38
    assert len(second[0]) == 40
    assert bool(first[1].isfinite().all())


def test_ridge_recovers_a_planted_map() -> None:
    x, weight, bias = draw(300, 10, seed=1) + 3.0, draw(4, 10, seed=2), draw(4, seed=3)
    sums = NormalEquations()
    for rows in x.split(70):
        sums.add(rows, rows @ weight.T + bias)
    found = sums.solve(1e-9)
    torch.testing.assert_close(found["w1"], weight, rtol=0, atol=1e-8)
    torch.testing.assert_close(found["b1"], bias, rtol=0, atol=1e-7)


def test_ridge_is_the_least_of_its_sum() -> None:
    """Against least squares with the penalty written as further rows, on centred data."""
    x, y, strength = draw(60, 7, seed=1) + 1.0, draw(60, 2, seed=2), 5.0
    sums = NormalEquations()
    sums.add(x, y)
    found = sums.solve(strength)
    rows = torch.cat((x - x.mean(0), strength**0.5 * torch.eye(7, dtype=torch.float64)))
    slow = torch.linalg.lstsq(rows, torch.cat((y - y.mean(0), torch.zeros(7, 2, dtype=torch.float64)))).solution.T
    torch.testing.assert_close(found["w1"], slow, rtol=0, atol=1e-12)
    torch.testing.assert_close(found["b1"], y.mean(0) - slow @ x.mean(0), rtol=0, atol=1e-12)


def test_the_penalty_is_that_which_does_best_on_other_tokens() -> None:
    """With hardly more tokens than channels and much noise, the least penalty is not it; with none, it is."""
    x, noise, weight = draw(80, 40, seed=1), draw(80, 1, seed=2), draw(1, 40, seed=3) / 10
    noisy, clean = NormalEquations(), NormalEquations()
    noisy.add(x[:50], x[:50] @ weight.T + noise[:50])
    clean.add(x[:50], x[:50] @ weight.T)
    assert best_strength([noisy], [(x[50:], x[50:] @ weight.T)]) > 1.0
    assert best_strength([clean], [(x[50:], x[50:] @ weight.T)]) == 1.0


def test_a_network_learns_what_no_line_can() -> None:
    x = draw(2048, 6, seed=1)
    y = torch.stack((x[:, 0].abs(), x[:, 1] * 0.5), 1)
    sums = NormalEquations()
    sums.add(x[:1536], y[:1536])
    line, network = sums.solve(1.0), fit_network(x[:1536], y[:1536])
    assert spread(line, x[1536:], y[1536:]).r2[0] < 0.1
    assert bool((spread(network, x[1536:], y[1536:]).r2 > 0.8).all())
    again = fit_network(x[:1536], y[:1536])
    assert all(torch.equal(network[name], again[name]) for name in network)


@pytest.mark.parametrize(("tokens", "samples", "length"), [(512, 8, 64), (4096, 8, 512), (16_000, 16, 1000), (517, 8, 64), (1001, 8, 125)])
def test_all_of_a_text_is_cut_into_equal_samples(tokens: int, samples: int, length: int) -> None:
    found = cut(torch.arange(tokens))
    assert torch.cat(found).tolist() == list(range(tokens))
    assert len(found) == samples
    assert {len(s) for s in found} <= {length, length + 1}


def test_a_short_text_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be calibrated on 200 tokens; it needs at least 256"):
        cut(torch.arange(200))


# Which weights are read -----------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Source:
    model = make_tiny_model("llama")
    use_kvbench_attention(model)
    return Source(model, Geometry.of(model), EXAMPLE, "a" * 64, tmp_path, lambda *_: None)


def asked(source: Source, which: str) -> dict[str, Any]:
    names = part_names(f"surrogate:{which}")[: 2 if which == "linear" else 4]
    found = provide(
        names, source.model, source.geometry, source.tokens, weights_hash=source.weights_hash, folder=source.folder, stage=source.stage
    )
    return dict(found)


def test_what_was_calibrated_is_kept_and_read_again(tiny: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    first = asked(tiny, "linear")
    assert [tuple(t.shape) for t in first[f"{NAME}/w1"]] == [(2, 96)] * 4
    monkeypatch.setattr(surrogate_weights, "calibrate", lambda *_: pytest.fail("calibrated again"))
    second = asked(tiny, "linear")
    assert all(torch.equal(a, b) for name in first for a, b in zip(first[name], second[name], strict=True))


def test_a_calibration_of_other_weights_is_refused(tiny: Source) -> None:
    file = surrogate_weights.kept_file("linear", tiny)
    assert file is not None
    save_tensors(file, {}, "b" * 64)
    with pytest.raises(ModelError, match="was made for other weights"):
        asked(tiny, "linear")


def test_held_out_tokens_are_told_of(tiny: Source) -> None:
    found = surrogate_weights.calibrate("linear", tiny)
    assert (found.kind, found.tokens, found.held_out) == ("linear", 7 * 64, 64)
    assert found.r2 is not None
    assert found.r2.shape == (4, 2)
    pair = list(replay(tiny, cut(EXAMPLE)[4]))[2]
    torch.testing.assert_close(found.r2[2], spread(found.layers[2], *pair).r2)


def published(folder: Path, kind: str, *, layers: int = 4, hidden: int = 96, heads: int = 2) -> list[nn.Module]:
    """A folder as NVIDIA's: ``layers.I.weight``, or ``layers.I.0.weight`` and ``layers.I.2.weight``, in bfloat16."""
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        modules: list[nn.Module] = [
            nn.Linear(hidden, heads) if kind == "linear" else nn.Sequential(nn.Linear(hidden, 24), nn.GELU(), nn.Linear(24, heads))
            for _ in range(layers)
        ]
    held = nn.ModuleDict({"layers": nn.ModuleList(modules)}).to(torch.bfloat16)
    save_file(held.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "kvzap"}')
    return modules


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_published_weights_score_as_their_own_modules(kind: str, tiny: Source, tmp_path: Path) -> None:
    modules = published(tmp_path / "weights", kind)
    artefacts = asked(tiny, str(tmp_path / "weights"))
    hidden = torch.randn(1, 5, 96, generator=torch.Generator().manual_seed(2))
    for i, module in enumerate(modules):
        own = {name: tensors[i] for name, tensors in artefacts.items()}
        with torch.no_grad():
            expected = module.float()(hidden).transpose(1, 2)
        torch.testing.assert_close(surrogate_scores(hidden, own, f"surrogate:{tmp_path / 'weights'}"), expected)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_published_weights_run_as_a_method(kind: str, tmp_path: Path) -> None:
    published(tmp_path / "weights", kind)
    model = make_tiny_model("llama")
    cache = kvbench.make_cache(model, f"kvzap:threshold=0,window=16,surrogate={tmp_path / 'weights'}", calibration_tokens=EXAMPLE)
    with torch.inference_mode():
        model(EXAMPLE[None, :100], past_key_values=cache, use_cache=True)
    assert 4 * 2 * 16 < cache.keys_held() < 4 * 2 * 100


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"layers": 3}, "was made for 3 layers of 2 KV heads over 96 channels; this model has 4 layers of 2 KV heads over 96 channels"),
        ({"heads": 8}, "was made for 4 layers of 8 KV heads over 96 channels; this model has 4"),
        ({"hidden": 64}, "was made for 4 layers of 2 KV heads over 64 channels; this model has 4"),
    ],
)
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_published_weights_of_another_model_are_refused(kind: str, sizes: dict[str, int], says: str, tiny: Source, tmp_path: Path) -> None:
    published(tmp_path / "weights", kind, **sizes)
    with pytest.raises(ModelError, match=says) as caught:
        asked(tiny, str(tmp_path / "weights"))
    assert caught.value.hint == "use weights made for this model, or calibrate: kvbench calibrate kvzap"


def test_weights_that_are_no_surrogate_are_refused(tiny: Source, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    published(folder, "linear")
    save_file({"layers.0.weight": torch.zeros(2, 96)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="holds no surrogate"):
        asked(tiny, str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickles_are_refused(name: str, tiny: Source, tmp_path: Path) -> None:
    """By name, and under a false one before anything parses them."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / name).write_bytes(pickle.dumps({"layers.0.weight": [0.0]}))
    with pytest.raises(ModelError, match=r"is a pickle|as a pickle"):
        asked(tiny, str(folder))


# The command -------------------------------------------------------------------------------------------------------------


def test_calibrate_prints_r2_and_keeps_what_runs_read(
    tiny: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kvbench.cli.calibrate._source", lambda spec, tokens: tiny)
    assert main(["calibrate", "kvzap", "--kind", "mlp"]) == 0
    out, err = capsys.readouterr()
    assert "R²" in out
    assert "mlp: learnt from 448 tokens, tested on 64 others" in out
    assert "kvbench run --methods kvzap:surrogate=mlp" in err
    file = surrogate_weights.kept_file("mlp", tiny)
    assert file is not None
    assert file.is_file()


def test_calibrate_takes_published_weights(
    tiny: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = published(tmp_path / "weights", "linear")
    monkeypatch.setattr("kvbench.cli.calibrate._source", lambda spec, tokens: tiny)
    assert main(["calibrate", "kvzap", "--from", str(tmp_path / "weights")]) == 0
    assert "linear surrogate of 4 layers" in capsys.readouterr().out
    assert torch.equal(asked(tiny, "linear")[f"{NAME}/w1"][3], modules[3].weight.detach().float())  # type: ignore[operator, union-attr]


def test_calibrate_knows_one_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "kvzip"]) == 2
    assert "did you mean kvzap?" in capsys.readouterr().err


def test_a_folder_without_weights_is_refused_before_any_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be a folder that is there"):
        method_of(f"kvzap:surrogate={tmp_path / 'none'}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UsageError, match=r"must hold a \.safetensors file"):
        method_of(f"kvzap:surrogate={tmp_path}")
