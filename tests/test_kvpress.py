"""Against an independent implementation: kvpress 0.5.5, token by token, on the embedded model (``tests/golden``)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from kvbench.caches.cache import CacheOptions, Geometry, use_kvbench_attention
from kvbench.caches.channels import ThinLayer
from kvbench.caches.dense import DenseLayer
from kvbench.caches.ragged import RaggedLayer
from kvbench.instruments.protocol import Prompt, Runner
from kvbench.instruments.scoring import score
from kvbench.methods.adakv import AdaKV
from kvbench.methods.base import Eviction, Method, resolve
from kvbench.methods.snapkv import SnapKV
from kvbench.spec import CorpusSpec, MethodSpec, RunSpec
from kvbench.texts.corpora import load_windows

GOLDEN: dict[str, Any] = orjson.loads((Path(__file__).parent / "golden" / "kvpress.json").read_bytes())
SECTIONS = [name for name, facts in GOLDEN.items() if isinstance(facts, dict) and "methods" in facts]
if not os.environ.get("KVBENCH_FULL"):  # C = S = 512, four samples: minutes
    SECTIONS = [name for name in SECTIONS if not name.startswith("full")]
SAMPLES = None if os.environ.get("KVBENCH_FULL") else 2
CASES = [(section, name) for section in SECTIONS for name in GOLDEN[section]["methods"]]
SELECTIONS = [case for case in CASES if "kept" in GOLDEN[case[0]]["methods"][case[1]]]
OURS = {"window_size": "window", "kernel_size": "kernel"}
"""Parameters that kvpress calls otherwise; ``epsilon`` is 0 there and none here."""
pytestmark = [pytest.mark.data, pytest.mark.model]


@dataclass(frozen=True)
class NarrowAdaKV(AdaKV):
    """AdaKV over a SnapKV of another window than its default."""

    window: int = 64

    def _scorer(self) -> Eviction:
        return SnapKV(compression_ratio=self.compression_ratio, window=self.window)


@pytest.fixture
def runner(embedded_model: Any) -> Runner:
    use_kvbench_attention(embedded_model.model)
    return Runner(embedded_model.model, Geometry.of(embedded_model.model), {}, CacheOptions())


@pytest.fixture(scope="module")
def windows(loaded_embedded_model: Any, data_dir: Path) -> Callable[[str], torch.Tensor]:
    """A golden section's own windows, cut by kvbench's loader."""

    @cache
    def of(section: str) -> torch.Tensor:
        lengths = {name: GOLDEN[section][name] for name in ("samples", "context", "continuation")}
        spec = RunSpec(corpus=CorpusSpec("wikitext2", str(data_dir)), **lengths)
        return load_windows(spec, loaded_embedded_model.tokenizer, lambda *_: None).tokens

    return of


@pytest.fixture(scope="module")
def prompt(windows: Callable[[str], torch.Tensor]) -> Callable[[Runner, str, int], Prompt]:
    """Of a section's sample, for all of its methods."""
    read: dict[tuple[str, int], Prompt] = {}

    def of(runner: Runner, section: str, row: int) -> Prompt:
        if (section, row) not in read:
            needs = reduce(or_, (method_of(section, name).needs for name in GOLDEN[section]["methods"]))
            read[section, row] = runner.prefill(windows(section)[row : row + 1, : GOLDEN[section]["context"]], needs)
        return read[section, row]

    return of


def method_of(section: str, name: str) -> Method:
    """Ours with the parameters that the golden file names."""
    facts = GOLDEN[section]["methods"][name]
    params = {OURS.get(key, key): value for key, value in facts["params"].items() if key != "epsilon"}
    ratio = GOLDEN[section]["compression_ratio"]
    if name == "adakv":
        return NarrowAdaKV(compression_ratio=ratio, window=params["window"], **facts["wrapper_params"])
    if name == "think":  # kvpress thins the newest tokens too
        params |= {"key_channel_compression_ratio": ratio, "recent": 0}
    spec = MethodSpec("baseline" if name == "none" else name, tuple(params.items()))
    return resolve(spec, RunSpec(compression_ratio=ratio))


@pytest.mark.parametrize(("section", "name"), CASES)
def test_nll_agrees_with_kvpress(section: str, name: str, runner: Runner, windows: Any, prompt: Any) -> None:
    """Per-sample NLL to 1e-3 relative; scored here in one block, there token by token."""
    golden, method = GOLDEN[section]["methods"][name]["nll"], method_of(section, name)
    fresh = windows(section)[:, None, GOLDEN[section]["context"] :]
    for row, (tokens, expected) in list(enumerate(zip(fresh, golden, strict=True)))[:SAMPLES]:
        read = prompt(runner, section, row)
        hidden = runner.continuation(read, runner.compress(method, read), tokens)
        found = score(runner, {"baseline": hidden}, tokens, "baseline")["baseline"].record(0)
        assert found["tokens"] == GOLDEN[section]["continuation"]
        assert found["nll"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("section", "name"), SELECTIONS)
def test_kept_tokens_are_kvpress_s(section: str, name: str, runner: Runner, prompt: Any) -> None:
    """The same tokens in every KV head of the recorded layers of the first sample, and as many in every layer."""
    golden, method, split = GOLDEN[section]["methods"][name], method_of(section, name), GOLDEN[section]["context"]
    read = prompt(runner, section, 0)
    cache = runner.compress(method, read)
    for layer, heads in golden["kept"].items():
        full = read.views[int(layer)].keys[0]
        for head, expected in enumerate(heads):
            ours = head_of(cache.layers[int(layer)], head)
            assert [int(torch.nonzero((full[head] == key).all(-1))[0]) for key in ours] == expected
    if "wrapper" not in golden:  # AdaKVPress only hides
        lengths = golden["n_kept"] if isinstance(golden["n_kept"], list) else [golden["n_kept"]] * len(cache.layers)
        assert [layer.length for layer in cache.layers] == lengths
    assert sum(layer.held() for layer in cache.layers) == pytest.approx(0.5 * split * len(cache.layers) * len(heads), abs=len(cache.layers))


def head_of(layer: Any, head: int) -> torch.Tensor:
    """The keys of one KV head, ``[m, D]``."""
    if isinstance(layer, RaggedLayer):
        layer, head = layer.cells[0][head], 0
    assert isinstance(layer, DenseLayer)
    return layer.keys_store.read(torch.float32)[0, head]


@pytest.mark.parametrize("section", [section for section, name in CASES if name == "think"])
def test_kept_channels_are_kvpress_s(section: str, runner: Runner, prompt: Any) -> None:
    cache = runner.compress(method_of(section, "think"), prompt(runner, section, 0))
    for index, heads in GOLDEN[section]["methods"]["think"]["channels"].items():
        layer = cache.layers[int(index)]
        assert isinstance(layer, ThinLayer)
        assert layer.old_keys.channels is not None
        assert layer.old_keys.channels[0].tolist() == heads
