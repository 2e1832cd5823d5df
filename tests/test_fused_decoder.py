"""The fused decode step: its tokens are the model's own, whatever the family, and merged weights leave the model as it was."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from making import method_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kvbench.caches.attend import attend
from kvbench.caches.cache import CacheOptions, Geometry, KVCache, use_kvbench_attention
from kvbench.caches.fold import Fold
from kvbench.calibration import provide
from kvbench.errors import UsageError
from kvbench.fused import merged_weights as merging
from kvbench.fused.decoder import Form, FusedDecoder
from kvbench.fused.graph import HostSync
from kvbench.fused.layer import fuse
from kvbench.fused.oracle import normed, turned
from kvbench.fused.storage import NotFused
from kvbench.instruments.protocol import Runner
from kvbench.instruments.tiny import make_tiny_config, make_tiny_model

PROMPT, STEPS, RESERVE = 21, 12, 16


@dataclass
class DenseDouble:
    """A fused layer as the decoder knows it: dense, in plain PyTorch, with a slot a token. Reads its counter as a graph would."""

    keys: Tensor
    values: Tensor
    held: int
    counter: Tensor
    heads: int
    scaling: float
    fold: Fold | None = None

    @property
    def taken(self) -> DenseDouble:
        return self

    @property
    def kv_heads(self) -> int:
        return self.keys.shape[1]

    @property
    def head_dim(self) -> int:
        return self.keys.shape[3]

    @property
    def value_dim(self) -> int:
        return self.values.shape[3]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        slot = self.counter.long() + self.held
        self.keys.index_copy_(2, slot, k[:, :, None])
        self.values.index_copy_(2, slot, v[:, :, None])
        hidden = torch.arange(self.keys.shape[2]) > slot
        return attend(q[:, :, None], self.keys, self.values, self.scaling, hidden.expand(self.keys.shape[:3])).flatten(1)

    def attend_raw(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, q_norm: Tensor | None = None, k_norm: Tensor | None = None, eps: float = 0.0
    ) -> Tensor:
        widths = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.value_dim]
        q, k, v = qkv.split(widths, 1)
        q, k, v = q.unflatten(1, (self.heads, -1)), k.unflatten(1, (self.kv_heads, -1)), v.unflatten(1, (self.kv_heads, -1))
        if q_norm is not None and k_norm is not None:
            q, k = normed(q, q_norm, eps), normed(k, k_norm, eps)
        return self.attend(turned(q, cos, sin), turned(k, cos, sin), v)


@dataclass
class StateDouble:
    """A fused state of such layers; remembers at which counts it was flushed."""

    layers: list[DenseDouble]
    counter: Tensor
    seen: int
    reserve: int = RESERVE
    every: int | None = None
    phase: int = 0
    flushed: list[int] = field(default_factory=list)

    def flush(self) -> None:
        self.flushed.append(int(self.counter))


def double(cache: KVCache, *, folds: list[Fold] | None = None, every: int | None = None) -> StateDouble:
    """What ``fuse`` would make of a dense cache, or of one with values in a basis."""
    counter = torch.zeros(1, dtype=torch.int32)
    layers = []
    for index, layer in enumerate(cache.layers):
        keys, values = (torch.nn.functional.pad(x, (0, 0, 0, RESERVE)) for x in _stored(layer, folded=folds is not None))
        fold = None if folds is None else folds[index]
        layers.append(DenseDouble(keys, values, layer.length, counter, layer.context.heads, layer.scaling, fold))
    return StateDouble(layers, counter, cache.get_seq_length(), every=every)


def _stored(layer: Any, *, folded: bool) -> tuple[Tensor, Tensor]:
    if folded:
        return layer.keys_store.read(torch.float64), layer.values_store.read(torch.float64)
    return layer.read(torch.float64)


def runner_of(model: Any, label: str = "baseline") -> Runner:
    use_kvbench_attention(model)
    geometry, names = Geometry.of(model), method_of(label).artefacts
    artefacts = provide(names, model, geometry, prompt(1, 256)[0], weights_hash=None, folder=None, stage=lambda *_: None)
    return Runner(model, geometry, artefacts, CacheOptions())


def prompt(rows: int, length: int = PROMPT) -> Tensor:
    return torch.randint(3, 128, (rows, length), generator=torch.Generator().manual_seed(rows))


def prefilled(runner: Runner, label: str, rows: int, length: int = PROMPT) -> tuple[KVCache, Tensor]:
    """A compressed prompt, and the logits that predict the next token."""
    method = method_of(label)
    read = runner.prefill(prompt(rows, length), method.needs)
    return runner.compress(method, read), runner.logits(read.last_hidden)


def reference(runner: Runner, cache: KVCache, logits: Tensor, steps: int = STEPS) -> Tensor:
    """Greedy tokens one at a time through the model's own forward."""
    token, found = logits.argmax(-1, keepdim=True), []
    for _ in range(steps):
        token = runner.logits(runner.forward(token, cache)[:, -1]).argmax(-1, keepdim=True)
        found.append(token)
    return torch.cat(found, 1)


def tiny(family: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A tiny model of any family, its biases and norms far from 0 and 1; plain modules, so that float32 norms stay."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**make_tiny_config("llama") | {"model_type": family} | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
            elif "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval().requires_grad_(False)


KNOWN: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "qwen3": {},
    "mistral": {"sliding_window": None, "hidden_act": "gelu_pytorch_tanh"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "starcoder2": {"sliding_window": None},
    "granite": {"residual_multiplier": 0.5, "attention_multiplier": 0.2, "embedding_multiplier": 3.0},
    "gemma": {"tie_word_embeddings": True},
    "phi3": {"sliding_window": None},
}


@pytest.mark.fast
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", KNOWN)
def test_a_known_family_decodes_the_models_own_tokens(family: str, rows: int) -> None:
    runner = runner_of(tiny(family, **KNOWN[family]))
    expected = reference(runner, *prefilled(runner, "baseline", rows))
    cache, logits = prefilled(runner, "baseline", rows)
    decoder = FusedDecoder(runner.model, double(cache))
    assert decoder.form == "native"
    decoder.start(logits)
    got = torch.cat((decoder.steps(5), decoder.steps(STEPS - 5)), 1)
    assert torch.equal(got, expected)
    assert decoder.tokens_done == STEPS


@pytest.mark.fast
@pytest.mark.parametrize("family", [*OTHERS, *KNOWN])
def test_any_family_decodes_the_models_own_tokens_through_its_own_forward(family: str) -> None:
    runner = runner_of(tiny(family, **(OTHERS | KNOWN)[family]))
    expected = reference(runner, *prefilled(runner, "baseline", 2))
    cache, logits = prefilled(runner, "baseline", 2)
    decoder = FusedDecoder(runner.model, double(cache), form="generic" if family in KNOWN else None)
    assert decoder.form == "generic"
    decoder.start(logits.argmax(-1))
    assert torch.equal(decoder.steps(STEPS), expected)


@pytest.mark.parametrize("form", ["native", "generic"])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_values_come_and_go_as_coefficients(family: str, form: Form) -> None:
    """A width of values other than the keys', its projections for one state alone: the next method finds the model as it was."""
    runner = runner_of(tiny(family, attention_bias=True), "v_lowrank:rank=5")
    expected = reference(runner, *prefilled(runner, "v_lowrank:rank=5", 2))
    dense = reference(runner, *prefilled(runner, "baseline", 2))
    cache, logits = prefilled(runner, "v_lowrank:rank=5", 2)
    own = [(m.v_proj, m.o_proj) for m in runner.geometry.modules]
    decoder = FusedDecoder(runner.model, double(cache, folds=[runner.folds.of(layer) for layer in cache.layers]), form=form)
    decoder.start(logits)
    assert torch.equal(decoder.steps(STEPS), expected)
    assert own == [(m.v_proj, m.o_proj) for m in runner.geometry.modules]
    assert torch.equal(reference(runner, *prefilled(runner, "baseline", 2)), dense)
    assert not torch.equal(dense, expected)


@pytest.mark.parametrize("form", ["native", "generic"])
@pytest.mark.parametrize("label", ["baseline", "knorm", "int8:group=16", "adakv", "v_lowrank:rank=8", "knorm+int8:group=16"])
def test_a_fused_cache_decodes_the_methods_own_tokens(label: str, form: Form) -> None:
    runner = runner_of(make_tiny_model("llama"), label)
    expected = reference(runner, *prefilled(runner, label, 2, 80))
    cache, logits = prefilled(runner, label, 2, 80)
    with FusedDecoder(runner.model, fuse(cache, runner, RESERVE), form=form) as decoder:
        decoder.start(logits)
        assert torch.equal(decoder.steps(STEPS), expected)


# Merged weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", KNOWN)
def test_merging_changes_no_bit_and_holds_no_weight_twice(family: str) -> None:
    model = tiny(family, **KNOWN[family])
    runner, tokens = runner_of(model), prompt(2)
    before = [runner.model(tokens).logits, runner.model.generate(tokens, max_new_tokens=5, do_sample=False)]
    numbers = {name: p.clone() for name, p in model.named_parameters()}
    total = _bytes(model.parameters())
    weights = merging.merged_weights(model)
    assert all(torch.equal(p, numbers[name]) for name, p in model.named_parameters())
    merged = [t for w in weights.layers for p in (w.qkv, w.gate_up) for t in (p.weight, p.bias) if t is not None]
    assert _bytes([*model.parameters(), *merged]) == total
    biased = {"llama": 4, "qwen2": 3}  # both groups of weights, and the biases of both or one
    assert len(merged) == biased.get(family, 2) * len(weights.layers)
    after = [runner.model(tokens).logits, runner.model.generate(tokens, max_new_tokens=5, do_sample=False)]
    assert all(map(torch.equal, before, after))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_weights_are_merged_once_a_model_and_anew_when_they_were_moved() -> None:
    model = tiny("qwen2")
    with torch.inference_mode():
        first = merging.merged_weights(model)
    assert merging.merged_weights(model) is first
    assert not any(t.is_inference() for t in (first.layers[0].qkv.weight, *model.parameters()))
    model.to(torch.float32)
    second = merging.merged_weights(model)
    assert second is not first
    assert second.layers[1].gate_up.weight.dtype == torch.float32
    model.get_decoder().layers[1].self_attn.k_proj.weight.mul_(2)  # through a view: the merged rows are the module's own
    assert merging.merged_weights(model) is second
    assert torch.equal(second.layers[1].qkv.weight[96:128], model.get_decoder().layers[1].self_attn.k_proj.weight)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("family", ["gemma", "granite", "starcoder2", "phi3"])
def test_a_family_with_other_numbers_is_not_taken_for_a_known_one(family: str) -> None:
    assert not merging.is_known(tiny(family, **OTHERS[family]))


@pytest.mark.parametrize("change", ["one bias", "adapter", "activation", "formats"])
def test_a_known_familys_model_that_was_altered_goes_through_its_own_forward(change: str) -> None:
    model = tiny("llama", hidden_act="relu") if change == "activation" else tiny("llama")
    attention = model.get_decoder().layers[2].self_attn
    if change == "one bias":
        attention.q_proj.bias = torch.nn.Parameter(torch.ones(96, dtype=torch.float64), requires_grad=False)
    elif change == "adapter":
        attention.v_proj = torch.nn.Sequential(attention.v_proj)
    elif change == "formats":
        attention.o_proj.to(torch.float32)
    assert not merging.is_known(model)


# What a graph needs -----------------------------------------------------------------------------


class NoHost(TorchDispatchMode):
    """Refuses every operation that would wait for a device, or copy to it from the host."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        if name in self.WAITS or (name == "lift_fresh" and args[0].ndim):  # a number that stays on the host is handed to kernels as such
            raise RuntimeError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.fast
@pytest.mark.parametrize(("family", "form"), [*((f, "native") for f in KNOWN), *((f, "generic") for f in (*KNOWN, *OTHERS))])
def test_a_step_asks_the_device_for_nothing(family: str, form: Form) -> None:
    runner = runner_of(tiny(family, **(OTHERS | KNOWN)[family]))
    cache, logits = prefilled(runner, "baseline", 2)
    decoder = FusedDecoder(runner.model, double(cache), form=form)
    decoder.start(logits)
    with NoHost():
        decoder.steps(3)
        with pytest.raises(RuntimeError, match="waits"):
            bool(logits.sum() > 0)


class GraphsDouble:
    """Runs what it warms up, and records a function as a graph does: what it works on must be kept alive by others."""

    def __init__(self, device: torch.device) -> None:
        self.warmed, self.recorded, self.closed = 0, 0, False

    def warm_up(self, work: Callable[[], object], undo: Callable[[], object]) -> None:
        for _ in range(2):
            work()
            undo()
        self.warmed += 1

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        self.recorded += 1
        held = weakref.WeakMethod(work) if inspect.ismethod(work) else weakref.ref(work)
        return lambda: held()()

    def close(self) -> None:
        self.closed = True


def test_warming_up_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvbench.fused.decoder.Graphs", GraphsDouble)
    runner = runner_of(tiny("qwen3"))
    expected = reference(runner, *prefilled(runner, "baseline", 2))
    cache, logits = prefilled(runner, "baseline", 2)
    state = double(cache, every=5)
    with FusedDecoder(runner.model, state, capture=True) as decoder:
        decoder.start(logits)
        assert int(state.counter) == 0
        assert state.flushed == [5] * 10  # tried and timed as it will first be due
        state.flushed.clear()
        assert torch.equal(decoder.steps(STEPS), expected)
        graphs = decoder._ready.graphs
        assert graphs.recorded == graphs.warmed == 2
    assert graphs.closed
    assert state.flushed == [5, 10]


def test_no_flush_is_recorded_where_none_will_be_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvbench.fused.decoder.Graphs", GraphsDouble)
    runner = runner_of(tiny("qwen2"))
    cache, logits = prefilled(runner, "baseline", 1)
    state = double(cache, every=RESERVE + 1)
    decoder = FusedDecoder(runner.model, state, capture=True)
    decoder.start(logits)
    decoder.steps(RESERVE)
    assert state.flushed == []
    assert decoder._ready.graphs.recorded == 1


@pytest.mark.parametrize("asked", [True, None])
def test_a_step_that_waits_runs_without_a_graph_unless_one_was_asked_for(asked: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waits(GraphsDouble):
        def record(self, work: Callable[[], object]) -> Callable[[], object]:
            raise HostSync("called a synchronizing CUDA operation")

    monkeypatch.setattr("kvbench.fused.decoder.Graphs", Waits)
    monkeypatch.setattr("kvbench.fused.decoder._has_graphs", lambda device: True)
    runner = runner_of(tiny("qwen2"))
    expected = reference(runner, *prefilled(runner, "baseline", 1))
    cache, logits = prefilled(runner, "baseline", 1)
    state = double(cache)
    decoder = FusedDecoder(runner.model, state, capture=asked)
    if asked:
        with pytest.raises(NotFused, match="synchronizing"):
            decoder.start(logits)
        assert int(state.counter) == 0
        return
    decoder.start(logits)
    assert "synchronizing" in decoder.uncaptured
    assert torch.equal(decoder.steps(STEPS), expected)


# How it is used ---------------------------------------------------------------------------------


def test_a_new_start_goes_on_from_what_is_stored() -> None:
    runner = runner_of(tiny("qwen2"))
    cache, logits = prefilled(runner, "baseline", 1)
    decoder = FusedDecoder(runner.model, double(cache))
    decoder.start(logits)
    found = decoder.steps(3)
    decoder.start(torch.tensor([7]))
    cache, _ = prefilled(runner, "baseline", 1)
    for token in (logits.argmax(-1), *found[0, :2, None]):
        runner.forward(token[None], cache)
    hidden = runner.forward(torch.tensor([[7]]), cache)
    assert torch.equal(decoder.steps(1), runner.logits(hidden[:, -1]).argmax(-1, keepdim=True))


def test_misuse_is_told_as_such() -> None:
    runner = runner_of(tiny("qwen2"))
    cache, logits = prefilled(runner, "baseline", 2)
    decoder = FusedDecoder(runner.model, double(cache))
    with pytest.raises(UsageError, match="not started"):
        decoder.steps(1)
    decoder.start(logits)
    with pytest.raises(UsageError, match="2 rows and is given 1"):
        decoder.start(logits[:1])
    decoder.steps(RESERVE - 1)
    with pytest.raises(UsageError, match="room for 1"):
        decoder.steps(2)
    assert decoder.steps(0).shape == (2, 0)
    state = decoder._state
    decoder.steps(1)
    with pytest.raises(UsageError, match="none is left"):
        FusedDecoder(runner.model, state)
    decoder.close()
    decoder.close()
    with pytest.raises(UsageError, match="closed"):
        decoder.steps(1)
    with pytest.raises(UsageError, match="closed"):
        decoder.start(logits)


def test_models_that_a_step_cannot_serve_are_refused() -> None:
    runner = runner_of(tiny("mistral", sliding_window=PROMPT + RESERVE - 1))
    cache, _ = prefilled(runner, "baseline", 1)
    state = double(cache)
    with pytest.raises(NotFused, match="sliding"):
        FusedDecoder(runner.model, state)
    state.reserve -= 1
    FusedDecoder(runner.model, state)
    spread = tiny("qwen2")
    spread.get_decoder().layers[3].to("meta")
    with pytest.raises(NotFused, match="cpu, meta"):
        FusedDecoder(spread, state)
    with pytest.raises(NotFused, match="2 layers and the cache 4"):
        FusedDecoder(tiny("qwen2", num_hidden_layers=2), state)
