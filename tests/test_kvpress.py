"""Against an independent implementation: kvpress 0.5.5, token by token, on the embedded model (``tests/golden``)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from kvbench.caches.cache import CacheOptions, Geometry, use_kvbench_attention
from kvbench.corpora import load_windows
from kvbench.engine.protocol import Runner
from kvbench.engine.scoring import score
from kvbench.methods.base import resolve
from kvbench.spec import CorpusSpec, MethodSpec, RunSpec

GOLDEN: dict[str, Any] = orjson.loads((Path(__file__).parent / "golden" / "kvpress.json").read_bytes())
OURS = {"none": "baseline"}
CASES = [("small", name) for name in GOLDEN["small"]["methods"]] + [("small_snapkv_window16", "snapkv")]
if os.environ.get("KVBENCH_FULL"):  # C = S = 512, four samples: minutes
    CASES += [("full", name) for name in GOLDEN["full"]["methods"]]
METHODS = {("small_snapkv_window16", "snapkv"): "snapkv:window=16"}
pytestmark = [pytest.mark.data, pytest.mark.model]


@pytest.fixture(scope="module")
def runner(embedded_model: Any) -> Runner:
    use_kvbench_attention(embedded_model.model)
    return Runner(embedded_model.model, Geometry.of(embedded_model.model), {}, CacheOptions())


def windows(section: str, embedded_model: Any, data_dir: Path) -> torch.Tensor:
    """The golden section's own windows, cut by kvbench's loader."""
    facts = GOLDEN[section]
    lengths = {name: facts[name] for name in ("samples", "context", "continuation")}
    spec = RunSpec(corpus=CorpusSpec("wikitext2", str(data_dir)), **lengths)
    return load_windows(spec, embedded_model.tokenizer, lambda *_: None).tokens


def method_of(section: str, name: str) -> Any:
    spec = MethodSpec.parse(METHODS.get((section, name), OURS.get(name, name)))
    return resolve(spec, RunSpec(compression_ratio=GOLDEN[section]["compression_ratio"]))


@pytest.mark.parametrize(("section", "name"), CASES)
def test_nll_agrees_with_kvpress(section: str, name: str, runner: Runner, embedded_model: Any, data_dir: Path) -> None:
    """Per-sample NLL to 1e-3 relative; scored here in one block, there token by token."""
    golden = GOLDEN[section]["methods"][name]["nll"]
    tokens, split = windows(section, embedded_model, data_dir), GOLDEN[section]["context"]
    method = method_of(section, name)
    for row, expected in zip(tokens[:, None], golden, strict=True):
        prompt = runner.prefill(row[:, :split], method.needs)
        hidden = runner.continuation(prompt, runner.compress(method, prompt), row[:, split:])
        found = score(runner, {"baseline": hidden}, row[:, split:], "baseline")["baseline"].record(0)
        assert found["tokens"] == GOLDEN[section]["continuation"]
        assert found["nll"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("section", "name"), [case for case in CASES if case[1] != "none"])
def test_kept_tokens_are_kvpress_s(section: str, name: str, runner: Runner, embedded_model: Any, data_dir: Path) -> None:
    """The same tokens in every KV head of the recorded layers of the first sample."""
    tokens, split = windows(section, embedded_model, data_dir)[:1, : GOLDEN[section]["context"]], GOLDEN[section]["context"]
    method = method_of(section, name)
    prompt = runner.prefill(tokens, method.needs)
    cache = runner.compress(method, prompt)
    for layer, heads in GOLDEN[section]["methods"][name]["kept"].items():
        ours = cache.layers[int(layer)].keys_store.read(torch.float32)[0]
        full = prompt.views[int(layer)].keys[0]
        for head, expected in enumerate(heads):
            kept = [int(torch.nonzero((full[head] == key).all(-1))[0]) for key in ours[head]]
            assert kept == expected
            assert len(kept) == split // 2
