"""Each audit label is reached by a method that deserves it, the deliberately cheating ones included."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from telling import Told
from torch import Tensor, nn

from kvbench.caches.attend import attend
from kvbench.caches.dense import DenseLayer
from kvbench.caches.evicted import EvictedLayer
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.ledger import Part
from kvbench.caches.packing import Scheme
from kvbench.caches.stores import QuantStore
from kvbench.errors import RunFailed
from kvbench.evaluators.audit import Audit
from kvbench.instruments.audit import Auditor
from kvbench.instruments.canary import shout
from kvbench.instruments.session import Session
from kvbench.instruments.tiny import make_tiny_config
from kvbench.methods.base import METHODS, Eviction, Method, expand, resolve
from kvbench.spec import EvaluatorSpec, MethodSpec, ModelSpec, RunSpec, Unit

pytestmark = pytest.mark.fast
TRIALS = {name: trial for name in METHODS.names() if (trial := METHODS.load(name).trial) is not None}
"""Methods whose defaults find nothing to remove in a random model, and how they are tried on one."""
ASIDE: list[Tensor] = []
"""Where a cheat hides copies: outside its cache."""


class FakeQuantLayer(DenseLayer):
    """Rounds like four bits and stores the rounded numbers dense: right numerics, nothing saved."""

    def append(self, keys: Tensor, values: Tensor) -> None:
        rounding = QuantStore("", Scheme(4, self.context.head_dim), self.context.dtype)
        super().append(rounding.rounded(keys), rounding.rounded(values))


class MaskingLayer(DenseLayer):
    """Keeps everything and hides every other prompt token."""

    prompt = 0

    def compress(self, prompt: TokenView) -> None:
        super().compress(prompt)
        self.prompt = prompt.seen

    def attend(self, q: Tensor) -> Tensor:
        seen = torch.cat((torch.arange(0, self.prompt, 2), torch.arange(self.prompt, self.length)))
        keys, values = self.keys_store.read(q.dtype), self.values_store.read(q.dtype)
        return attend(q, keys[:, :, seen], values[:, :, seen], self.scaling)


class UnreadLayer(EvictedLayer):
    """Stores half and attends to a full copy elsewhere: nothing lost, nothing true."""

    def compress(self, prompt: TokenView) -> None:
        super().compress(prompt)
        self.place = len(ASIDE)
        ASIDE.extend((prompt.keys.clone(), prompt.values.clone()))

    def append(self, keys: Tensor, values: Tensor) -> None:
        super().append(keys, values)
        if self.seen:
            ASIDE[self.place] = torch.cat((ASIDE[self.place], keys), 2)
            ASIDE[self.place + 1] = torch.cat((ASIDE[self.place + 1], values), 2)

    def attend(self, q: Tensor) -> Tensor:
        return attend(q, ASIDE[self.place], ASIDE[self.place + 1], self.scaling)


class UnderstatingLayer(EvictedLayer):
    """Keeps the full prompt on itself and leaves it out of its ledger."""

    def compress(self, prompt: TokenView) -> None:
        super().compress(prompt)
        self.hidden_copy = prompt.keys.clone()


class RoomyLayer(EvictedLayer):
    """Evicts half of a long prompt and keeps the room that the whole of it took."""

    def compress(self, prompt: TokenView) -> None:
        super().compress(prompt)
        for store in (self.keys_store, self.values_store):
            store.buffer.room = torch.cat((store.buffer.view(), torch.zeros_like(prompt.keys).repeat(1, 1, 4, 1)), 2)


@dataclass(frozen=True)
class Cheat(Eviction):
    name: ClassVar[str] = "cheat"
    kind: type[LayerCache] = DenseLayer

    def score(self, tokens: TokenView) -> Tensor:
        return tokens.positions.double()

    def layer(self, context: LayerContext) -> LayerCache:
        return self.kind(context, self) if issubclass(self.kind, EvictedLayer) else self.kind(context)


def opened(labels: list[str], dtype: str = "float32") -> Session:
    model = ModelSpec("tiny", dtype, cache_dtype=dtype, device="cpu", random_weights=True, config=make_tiny_config("qwen2"))
    spec = RunSpec(model=model, methods=expand(labels), evaluators=(EvaluatorSpec("speed"),), context=256, continuation=16)
    return Session.open(spec, {s.label: resolve(s, spec) for s in spec.methods}, lambda *_: None)


@pytest.fixture(scope="module")
def session() -> Session:
    return opened(["all", "kivi:bits=2,group=8,residual=16", *TRIALS.values()])


def verdict(session: Session, method: Method) -> Any:
    ASIDE.clear()
    session.methods["cheat"] = method  # type: ignore[index]
    found = Auditor(session, 256, 8, ["cheat"]).examine("cheat")
    del session.methods["cheat"]  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        (FakeQuantLayer, "simulated"),
        (MaskingLayer, "masked"),
        (UnreadLayer, "no-op"),
        (UnderstatingLayer, "simulated"),
        (RoomyLayer, "simulated"),
        (EvictedLayer, "real"),
    ],
)
def test_label_of(kind: type[LayerCache], label: str, session: Session) -> None:
    found = verdict(session, Cheat(kind=kind))
    assert found.label == label, found.to_plain()


def test_a_false_ledger_is_found(session: Session) -> None:
    check = verdict(session, Cheat(kind=UnderstatingLayer)).checks["ledger equals storages"]
    assert not check.passed


@pytest.mark.parametrize("label", dict.fromkeys(TRIALS.get(s.name, s.label) for s in expand(["all"])))
def test_built_in_methods_are_real(label: str, session: Session) -> None:
    found = Auditor(session, 256, 8, [label]).examine(label)
    assert found.label == ("reference" if label == "baseline" else "real"), found.to_plain()
    assert found.checks["ledger equals storages"].passed


def test_the_baseline_is_the_model_itself(session: Session) -> None:
    identity = Auditor(session, 64, 8, ["baseline"]).examine("baseline").checks["identity"]
    assert identity.passed, identity


@pytest.mark.parametrize(
    "label", ["kivi:residual=128", "snapkv:compression_ratio=0.0", "kvzap:window=128", "h2o:compression_ratio=0.0,decode=grow"]
)
def test_what_stores_all_as_it_is_has_compressed_nothing_yet(label: str, session: Session) -> None:
    """An accusation would say that bytes were not freed; here none could be."""
    session.methods[label] = resolve(MethodSpec.parse(label), session.spec)  # type: ignore[index]
    found = Auditor(session, 96, 8, [label]).examine(label)
    assert found.label == "nothing compressed yet", found.to_plain()
    assert not found.checks["fewer bytes"].passed


def test_a_method_that_has_nothing_to_do_at_the_audits_length_is_audited_at_the_runs(session: Session) -> None:
    session.methods["kivi"] = resolve(MethodSpec.parse("kivi:bits=2,group=8,residual=128"), session.spec)  # type: ignore[index]
    told = Told("audit")
    Audit(context=64, steps=8).run(Unit("audit/0", "audit", 0, ("kivi",), 1), session, told)
    assert told.labels == {"kivi": "real"}


class Scaled(nn.Module):
    """A head of which kvbench knows nothing: the model divides its logits after it."""

    def __init__(self, model: Any, by: float) -> None:
        super().__init__()
        self.forward_of_model, self.by = model.forward, by

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.forward_of_model(*args, **kwargs)
        out.logits = out.logits / self.by
        return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("by", [1.05, 8.0])
def test_a_scale_after_the_head_ends_the_run(by: float, dtype: str) -> None:
    session = opened(["baseline"], dtype)
    session.runner.model.forward = Scaled(session.runner.model, by).forward
    told = Told("audit")
    with pytest.raises(RunFailed, match="head"):
        Audit(context=64, steps=8).run(Unit("audit/0", "audit", 0, ("baseline",), 1), session, told)
    assert told.labels == {"baseline": "reference"}  # its checks are told all the same


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_that_is_computed_rightly_goes_on(dtype: str) -> None:
    told = Told("audit")
    Audit(context=64, steps=8).run(Unit("audit/0", "audit", 0, ("baseline",), 1), opened(["baseline"], dtype), told)
    assert not told.failed


@dataclass(frozen=True)
class Ratio(Eviction):
    """A score that divides by a key's norm, as an author may."""

    name: ClassVar[str] = "ratio"

    def score(self, tokens: TokenView) -> Tensor:
        return tokens.values.norm(dim=-1) / tokens.keys.norm(dim=-1)


def test_random_prompts_hold_no_token_without_an_embedding(session: Session) -> None:
    """Padding's is zero in random weights: keys of no length would make honest scores NaN."""
    assert verdict(session, Ratio()).label == "real"
    assert not bool((session.prompt(1, 4096) == session.loaded.model.config.pad_token_id).any())


@pytest.mark.parametrize(
    ("dtype", "loud", "least"),
    [(torch.bool, True, False), (torch.int8, 127, -128), (torch.uint8, 255, 0), (torch.float16, 1e4, -1e4), (torch.float32, 1e4, -1e4)],
)
def test_a_probed_token_is_as_loud_as_its_format_can_be_and_no_other_is_touched(dtype: torch.dtype, loud: float, least: float) -> None:
    for sign, value in ((1, loud), (-1, least)):
        stored = torch.ones(1, 2, 5, 3).to(dtype)
        layer: Any = SimpleNamespace(all_parts=lambda stored=stored: [Part("keys", stored, stored.nbytes)])
        shout(SimpleNamespace(layers=[layer]), (0, 1, 3), 5, sign)  # type: ignore[arg-type]
        wanted = torch.ones(1, 2, 5, 3).to(dtype)
        wanted[:, 1, 3] = value
        assert torch.equal(stored, wanted)
