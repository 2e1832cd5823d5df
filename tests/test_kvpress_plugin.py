"""Presses of kvpress as methods: the same as ours where we have the same, refused where they cannot be run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from kvbench.caches.attend import attend
from kvbench.caches.cache import CacheOptions, Geometry, KVCache, use_kvbench_attention
from kvbench.caches.pressed import PressedLayer
from kvbench.errors import UnknownName, UsageError
from kvbench.instruments.audit import Auditor
from kvbench.instruments.protocol import Prompt, Runner
from kvbench.instruments.session import Session
from kvbench.instruments.tiny import make_tiny_config, make_tiny_model
from kvbench.instruments.verify import Sizes, conformance
from kvbench.methods.base import METHODS, expand, resolve
from kvbench.spec import EvaluatorSpec, MethodSpec, ModelSpec, RunSpec

pytestmark = pytest.mark.fast
installed = pytest.mark.skipif(find_spec("kvpress") is None, reason="kvpress is not installed (pip install 'kvbench[kvpress]')")
ADAKV = "kvpress:AdaKVPress,inner=SnapKVPress,window_size=8"


@pytest.fixture(scope="module")
def runner() -> Runner:
    model = make_tiny_model("llama")
    use_kvbench_attention(model)
    return Runner(model, Geometry.of(model), {}, CacheOptions())


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(3, 128, (rows, 90), generator=torch.Generator().manual_seed(3))


def run(runner: Runner, text: str) -> tuple[Prompt, KVCache, torch.Tensor]:
    method = resolve(MethodSpec.parse(text), RunSpec())
    prompt = runner.prefill(tokens()[:, :64], method.needs)
    cache = runner.compress(method, prompt)
    return prompt, cache, runner.continuation(prompt, cache, tokens()[:, 64:])


@pytest.mark.skipif(find_spec("kvpress") is not None, reason="kvpress is installed")
def test_without_the_package_the_way_to_it_is_named() -> None:
    with pytest.raises(UsageError, match="kvpress, which is not installed") as caught:
        resolve(MethodSpec.parse("kvpress:SnapKVPress"), RunSpec())
    assert "pip install 'kvbench[kvpress]'" in str(caught.value.hint)


def test_it_is_listed_without_the_package_and_not_in_all() -> None:
    assert "kvpress" not in {spec.name for spec in expand(["all"])}
    code = "import sys; from kvbench.cli.list_names import _methods; _methods(); print('kvpress' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert [name for name, _, _ in METHODS.load("kvpress").parameters()] == ["press", "inner", "compression_ratio"]


def test_attention_hides_what_it_is_told_to_hide() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, n, 8, generator=draw, dtype=torch.float64) for heads, n in ((4, 3), (2, 20), (2, 20)))
    hidden = torch.rand(2, 2, 20, generator=draw) < 0.5
    hidden[..., -3:] = False
    got = attend(q, k, v, 0.3, hidden)
    for row in range(2):
        for head in range(4):
            seen = ~hidden[row, head // 2]
            own = [t[row : row + 1, head // 2 : head // 2 + 1, seen] for t in (k, v)]
            want = attend(q[row : row + 1, head : head + 1], *own, 0.3)
            assert torch.allclose(got[row, head], want[0, 0], atol=1e-14)


@installed
@pytest.mark.parametrize(
    ("press", "ours"),
    [
        ("kvpress:SnapKVPress,window_size=8", "snapkv:window=8"),
        ("kvpress:ObservedAttentionPress", "observed_attention"),
        ("kvpress:ExpectedAttentionPress,n_future_positions=16", "expected_attention:n_future_positions=16"),
        ("kvpress:KeyDiffPress,compression_ratio=0.25", "keydiff:compression_ratio=0.25"),
        ("kvpress:LagKVPress,lag_size=12", "lagkv:lag_size=12"),
        ("kvpress:PyramidKVPress,window_size=4", "pyramidkv:window=4"),
        ("kvpress:ThinKPress,key_channel_compression_ratio=0.5", "think:key_channel_compression_ratio=0.5,recent=0"),
        ("kvpress:AdaKVPress,inner=KeyDiffPress,alpha_safeguard=0.4", "adakv:score_by=keydiff,alpha_safeguard=0.4"),
    ],
)
def test_a_press_gives_what_our_method_gives(press: str, ours: str, runner: Runner) -> None:
    """Presses keep tokens in order of score, ours in order of position: the same up to rounding."""
    theirs, own = run(runner, press), run(runner, ours)
    assert torch.allclose(theirs[2], own[2], rtol=0, atol=1e-10)
    if "ThinK" not in press and "AdaKV" not in press:  # these keep every token
        assert theirs[1].keys_held() == own[1].keys_held()


@installed
def test_a_head_wise_press_hides_and_frees_nothing(runner: Runner) -> None:
    _, cache, _ = run(runner, ADAKV)
    for layer in cache.layers:
        assert isinstance(layer, PressedLayer)
        assert layer.masked is not None
        assert layer.masked[:, :, :64].sum((1, 2)).tolist() == [64, 64]  # half of 2 heads x 64 tokens, in each row
        assert layer.length == 64 + 25


@installed
def test_a_press_leaves_nothing_behind(runner: Runner) -> None:
    """Neither on the prompt, which other methods read too, nor on the model, nor in transformers."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from kvbench.caches.attention import kvbench_attention

    for text in (ADAKV, "kvpress:ThinKPress,key_channel_compression_ratio=0.5"):
        method = resolve(MethodSpec.parse(text), RunSpec())
        prompt = runner.prefill(tokens()[:, :64], method.needs)
        before = [(view.keys.clone(), view.values.clone()) for view in prompt.views]
        runner.compress(method, prompt)
        assert all(torch.equal(v.keys, k) and torch.equal(v.values, w) for v, (k, w) in zip(prompt.views, before, strict=True))
    assert all(not hasattr(module, "masked_key_indices") and "rotary_emb" not in module._modules for module in runner.geometry.modules)
    assert ALL_ATTENTION_FUNCTIONS["kvbench"] is kvbench_attention
    assert ALL_ATTENTION_FUNCTIONS["sdpa"].__module__.startswith("transformers.")


@installed
def test_attention_bears_kvpress_s_own_wrapper() -> None:
    """Where somebody else imported kvpress after kvbench, its wrapper stays around kvbench's attention."""
    from kvpress.attention_patch import attention_patch

    from kvbench.caches.attention import kvbench_attention

    q, k, v = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    want = kvbench_attention(torch.nn.Module(), q, k, v, None, scaling=0.3)[0]
    got = attention_patch(kvbench_attention)(torch.nn.Module(), q, k, v, None, dropout=0.0, scaling=0.3)[0]
    assert torch.equal(got, want)


@installed
@pytest.mark.parametrize("press", ["kvpress:SnapKVPress,window_size=8", ADAKV, "kvpress:ThinKPress,key_channel_compression_ratio=0.5"])
def test_presses_conform(press: str, family: str) -> None:
    """But for prompts that are no longer than its window, which kvpress refuses."""
    checks = conformance(resolve(MethodSpec.parse(press), RunSpec()), family, Sizes(27, 25, layers=2))
    failed = [check for check in checks if not check.passed and "refuses a prompt of 1 tokens" not in check.detail]
    assert not failed


@installed
def test_what_a_press_draws_hangs_on_the_seed(runner: Runner) -> None:
    state = torch.get_rng_state()
    first, again = run(runner, "kvpress:RandomPress")[2], run(runner, "kvpress:RandomPress")[2]
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())


@installed
@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("kvpress:SnapKVPress,window_size=8", "real"),
        (ADAKV, "masked"),
        ("kvpress:ThinKPress,key_channel_compression_ratio=0.5", "simulated"),
    ],
)
def test_the_audit_says_what_a_press_saves(text: str, label: str) -> None:
    model = ModelSpec("tiny", "float32", device="cpu", random_weights=True, config=make_tiny_config("qwen2"))
    methods: Sequence[MethodSpec] = expand([text])
    spec = RunSpec(model=model, methods=tuple(methods), evaluators=(EvaluatorSpec("speed"),), context=64, continuation=8)
    session = Session.open(spec, {s.label: resolve(s, spec) for s in methods}, lambda *_: None)
    found: Any = Auditor(session, 64, 8, [text]).examine(text)
    assert found.label == label, found.to_plain()


@installed
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kvpress", "press=; it must name a class of kvpress, for example kvpress:SnapKVPress"),
        ("kvpress:DecodingPress", "press=DecodingPress; it works while decoding, in several passes or on the whole model"),
        ("kvpress:KVzipPress", "press=KVzipPress; it works while decoding, in several passes or on the whole model"),
        ("kvpress:KeyRerotationPress,inner=KnormPress", "press=KeyRerotationPress; it counts positions anew"),
        ("kvpress:ScorerPress", "press=ScorerPress; it is a base class"),
        ("kvpress:AdaKVPress", "press=AdaKVPress; it wraps another press: add inner=, for example inner=SnapKVPress"),
        ("kvpress:AdaKVPress,inner=ThinKPress", "press=AdaKVPress; kvpress refuses its parameters: AdaKVPress requires a ScorerPress"),
        ("kvpress:KnormPress,inner=SnapKVPress", "inner=SnapKVPress; KnormPress wraps no other press"),
        ("kvpress:SnapKVPress,compression_ratio=1", "compression_ratio=1.0; it lies in [0, 1)"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(MethodSpec.parse(text), RunSpec())
    assert says in caught.value.message


@installed
@pytest.mark.parametrize(
    ("text", "near"),
    [("kvpress:SnapKV", "SnapKVPress"), ("kvpress:SnapKVPress,windw=3", "window_size"), ("kvpress:AdaKVPress,inner=Knrom", "KnormPress")],
)
def test_an_unknown_press_or_parameter_is_answered_with_the_nearest(text: str, near: str) -> None:
    with pytest.raises(UnknownName) as caught:
        resolve(MethodSpec.parse(text), RunSpec())
    assert near in caught.value.nearest


@installed
def test_a_ratio_is_refused_where_the_press_has_none() -> None:
    from kvbench.models.shape import Shape

    shape = Shape(layers=2, heads=4, kv_heads=2, head_dim=64, hidden_size=256, vocab_size=128, max_positions=2048)
    resolve(MethodSpec.parse("kvpress:ThinKPress"), RunSpec(compression_ratio=0.7)).check(shape)
    with pytest.raises(ValueError, match=r"ThinKPress has no such parameter, it takes key_channel_compression_ratio, window_size"):
        resolve(MethodSpec.parse("kvpress:ThinKPress,compression_ratio=0.7"), RunSpec()).check(shape)


@installed
def test_a_prompt_that_a_press_refuses_is_told_so(runner: Runner) -> None:
    with pytest.raises(UsageError, match=r"SnapKVPress refuses a prompt of 64 tokens: .*window size 64"):
        run(runner, "kvpress:SnapKVPress")
