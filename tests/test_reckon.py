"""What is planned is what is stored: every method's rule against the ledger of the cache that it fills."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import pytest
import torch
from test_conformance import SMALLER

from kvbench.budgeting.expected import expected_bytes, is_coupled, says
from kvbench.caches.cache import CacheOptions, Geometry, use_kvbench_attention
from kvbench.caches.dense import DenseLayer
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.needs import Needs
from kvbench.caches.token_scores import best_over_heads
from kvbench.calibration import stand_ins
from kvbench.instruments.protocol import Runner
from kvbench.instruments.tiny import make_tiny_model
from kvbench.methods.base import Eviction, Method, expand, resolve
from kvbench.models.shape import shape_of
from kvbench.spec import MethodSpec, RunSpec

MORE = [
    "snapkv:decode=hold,interval=32",
    "snapkv:window=8,decode=hold",
    "knorm:decode=hold,interval=1",
    "observed_attention:decode=hold",
    "pyramidkv:window=4",
    "pyramidkv:window=4,decode=hold,interval=2",
    "adakv:alpha_safeguard=0,decode=hold",
    "adakv:score_by=expected_attention,decode=hold",
    "adakv:alpha_safeguard=1+turboquant",
    "snapkv+turboquant:recent=7",
    "kivi:group=8,residual=8",
    "int4:residual=20",
    "int8:symmetric=false,k_bits=16",
    "fp8:residual=5",
    "turboquant:bits=1",
    "turboquant:bits=3,recent=9,v_residual=true",
    "orthogonal:k_rank=12,v_rank=4",
    "palu:bits=3,rank=8,group_heads=1",
    "v_lowrank:rank=6,bits=4",
    "think:recent=0",
    "think:recent=1000",
    "asymkv:compression_ratio=0.9",
    "hybrid:pyramid=0.6,group=0",
    "snapkv:compression_ratio=0.99",
]
UNSAID = {"minicache", "kvzap", "kvzap:threshold=-4", *(label for label in SMALLER if "kvzap" in label or "energy" in label)}
"""What the text, the weights or other layers decide. Heads that share a budget fill residuals as the text will have it: unknown too."""


@pytest.fixture(scope="module")
def model() -> Any:
    made = make_tiny_model("qwen2", torch.float32)
    use_kvbench_attention(made)
    return made


@pytest.mark.parametrize("tokens", [3, 45, 128])
def test_every_rule_is_the_ledger(tokens: int, model: Any) -> None:
    shape, geometry = shape_of(model.config.to_dict()), Geometry.of(model)
    methods = [resolve(spec, RunSpec()) for spec in expand(["all", *SMALLER, *MORE])]
    methods = [m for m in methods if m.label not in UNSAID]
    artefacts = {name: [t] * shape.layers for m in methods for name, t in (stand_ins(m.artefacts, shape) or {}).items()}
    runner = Runner(model, geometry, artefacts, CacheOptions(torch.bfloat16))
    ids = torch.randint(3, 100, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    with torch.inference_mode():
        prompt = runner.prefill(ids, reduce(lambda a, b: a | b, (m.needs for m in methods), Needs()))
        stored = {m.label: runner.compress(m, prompt).ledger().stored for m in methods}
    assert {m.label: expected_bytes(m, shape, tokens, "bfloat16") for m in methods} == stored


def test_what_the_text_decides_is_not_guessed(model: Any) -> None:
    shape = shape_of(model.config.to_dict())
    labels = [*UNSAID, "adakv+kivi:bits=2,group=8,residual=16"]
    assert [expected_bytes(resolve(MethodSpec.parse(label), RunSpec()), shape, 100) for label in labels] == [None] * len(labels)


def test_a_held_budget_is_as_small_as_one_that_grows_but_for_what_it_goes_on_with() -> None:
    """The model and lengths at which it was once planned, and stored, at half and at 1.66 times the baseline's size."""
    shape = shape_of({"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576, "vocab_size": 9})
    for tokens in (128, 2048):
        base, grows, holds = (
            expected_bytes(resolve(MethodSpec.parse(label), RunSpec()), shape, tokens)
            for label in ("baseline", "snapkv", "snapkv:decode=hold")
        )
        assert base
        assert grows
        assert holds
        assert base / grows == pytest.approx(2.0, rel=0.002)
        assert base / holds == pytest.approx(2.0, rel=0.02)


@dataclass(frozen=True)
class Own(Eviction):
    """A plug-in that scores, and stores as evictions do."""

    name: ClassVar[str] = "own"

    def score(self, tokens: TokenView) -> Any:
        return tokens.positions


@dataclass(frozen=True)
class Otherwise(Own):
    """A plug-in that stores in its own way, and does not say how much."""

    def layer(self, context: LayerContext) -> LayerCache:
        return DenseLayer(context)


@dataclass(frozen=True)
class Looks(Own):
    """A plug-in whose layer looks at numbers."""

    def layer(self, context: LayerContext) -> LayerCache:
        class Layer(DenseLayer):
            def compress(self, prompt: TokenView) -> None:
                self.append(prompt.keys[:, :, : int(prompt.keys.sum())], prompt.values)

        return Layer(context)


@pytest.mark.parametrize(("method", "said", "tokens"), [(Own(), True, 50), (Otherwise(), False, 100), (Looks(), False, None)])
def test_plug_ins(method: Method, said: bool, tokens: int | None, model: Any) -> None:
    shape = shape_of(model.config.to_dict())
    assert says(method) == said
    assert not is_coupled(method)
    each = 2 * (tokens or 0) * shape.kv_heads * shape.head_dim * 2 + 32
    assert expected_bytes(method, shape, 100) == (None if tokens is None else shape.layers * each)


def test_plans_import_no_torch() -> None:
    """Nor compute anything: 36 methods and three budgets of an 8B model over a million tokens."""
    code = (
        "from kvbench.cli.preview import preview; from kvbench.cli.question import spec_of\n"
        "text = preview(spec_of({'preset': 'llama8b', 'budget': '2x,4x,8x', 'evals': 'perplexity', 'context': 100_000}))\n"
        "import sys; print(len(text.splitlines()) > 88, [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["True", "[]"]


def test_heads_that_are_sure_of_their_share_keep_it_beside_a_window_of_another() -> None:
    """A prompt within the observation window scores infinity everywhere: one head would have kept all, and the others nothing."""
    kept = best_over_heads(torch.full((1, 3, 10), float("inf")), 4, 2)
    assert kept.sum(2).min() >= 2
    assert int(kept.sum()) == 12
