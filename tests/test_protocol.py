"""How tokens pass through a model: what no method's figures show, since they would be the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kvbench.caches.cache import CacheOptions, Geometry, use_kvbench_attention
from kvbench.instruments.protocol import Prompt, Runner
from kvbench.instruments.scoring import score
from kvbench.instruments.tiny import make_tiny_model
from kvbench.methods.base import Method, resolve
from kvbench.spec import MethodSpec, RunSpec

pytestmark = pytest.mark.fast
TOKENS = torch.randint(3, 128, (1, 24), generator=torch.Generator().manual_seed(0))
SPEC = RunSpec(context=16, continuation=8)


@pytest.fixture(scope="module")
def runner() -> Runner:
    model: Any = make_tiny_model("llama").requires_grad_(True)
    use_kvbench_attention(model)
    return Runner(model, Geometry.of(model), {}, CacheOptions())


@pytest.fixture(scope="module")
def method() -> Method:
    return resolve(MethodSpec.parse("knorm"), SPEC)


@pytest.fixture(scope="module")
def prompt(runner: Runner, method: Method) -> Prompt:
    return runner.prefill(TOKENS[:, :16], method.needs)


def test_nothing_is_kept_for_gradients(runner: Runner, method: Method, prompt: Prompt) -> None:
    """A graph of a whole prompt would hold all of its activations."""
    caches = [runner.compress(method, prompt) for _ in range(2)]
    hidden = {"forward": runner.forward(TOKENS[:, 16:], caches[0])}
    hidden["together"] = runner.together(TOKENS[:, 16:].repeat(2, 1), [runner.compress(method, prompt) for _ in range(2)], [1, 1])
    scores = score(runner, {"baseline": hidden["forward"]}, TOKENS[:, 16:], "baseline")["baseline"]
    stored = [part.tensor for cache in caches for layer in cache.layers for part in layer.all_parts()]
    made = [*hidden.values(), prompt.last_hidden, *(view.keys for view in prompt.views), *stored, scores.nll]
    assert not any(tensor.requires_grad for tensor in made)


def test_one_scored_token_comes_from_the_prompt_alone(runner: Runner, method: Method, prompt: Prompt) -> None:
    cache = runner.compress(method, prompt)
    hidden = runner.continuation(prompt, cache, TOKENS[:, 16:17])
    assert torch.equal(hidden, prompt.last_hidden[:, None])
    assert cache.get_seq_length() == 16, "no token was fed"


def test_one_cache_alone_goes_through_no_joint_one(runner: Runner, method: Method, prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvbench.instruments.protocol.JointCache", None)
    alone = runner.together(TOKENS[:, 16:], [runner.compress(method, prompt)], [1])
    assert torch.equal(alone, runner.forward(TOKENS[:, 16:], runner.compress(method, prompt)))


@pytest.mark.parametrize("stepwise", [False, True])
def test_a_streams_scored_tokens_are_predicted_by_those_before_them(runner: Runner, stepwise: bool) -> None:
    """The model's own hidden states at C - 1 … C + S - 2."""
    streaming = replace(runner, options=CacheOptions(protocol="streaming", context=16))
    hidden = streaming.streaming(streaming.cache(resolve(MethodSpec.parse("baseline"), SPEC)), TOKENS, 8, stepwise=stepwise)
    with torch.inference_mode():
        own = runner.model.get_decoder()(input_ids=TOKENS).last_hidden_state
    torch.testing.assert_close(hidden, own[:, 15:23], rtol=1e-12, atol=1e-12)
