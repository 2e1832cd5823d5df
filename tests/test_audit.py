"""Each audit label is reached by a method that deserves it, the deliberately cheating ones included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from kvbench.caches.attend import attend
from kvbench.caches.dense import DenseLayer
from kvbench.caches.evicted import EvictedLayer
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.packing import Scheme
from kvbench.caches.stores import QuantStore
from kvbench.engine.audit import Auditor
from kvbench.engine.session import Session
from kvbench.engine.tiny import make_tiny_config
from kvbench.methods.base import METHODS, Eviction, Method, expand, resolve
from kvbench.spec import EvaluatorSpec, ModelSpec, RunSpec

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


class HoardingLayer(EvictedLayer):
    """Evicts half, reads what is left, and keeps a full copy elsewhere."""

    def compress(self, prompt: TokenView) -> None:
        super().compress(prompt)
        ASIDE.append(prompt.keys.clone())


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


@pytest.fixture(scope="module")
def session() -> Session:
    model = ModelSpec("tiny", "float32", "float32", "cpu", random_weights=True, config=make_tiny_config("qwen2"))
    labels = ["all", "kivi:bits=2,group=8,residual=16", *TRIALS.values()]
    spec = RunSpec(model=model, methods=expand(labels), evaluators=(EvaluatorSpec("speed"),), context=256, continuation=16)
    return Session.open(spec, {s.label: resolve(s, spec) for s in spec.methods}, lambda *_: None)


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
        (HoardingLayer, "simulated"),
        (UnreadLayer, "no-op"),
        (UnderstatingLayer, "simulated"),
        (RoomyLayer, "simulated"),
        (EvictedLayer, "real"),
    ],
)
def test_label_of(kind: type[LayerCache], label: str, session: Session) -> None:
    found = verdict(session, Cheat(kind=kind))
    assert found.label == label, found.to_plain()


def test_a_copy_elsewhere_is_found_by_its_bytes(session: Session) -> None:
    check = verdict(session, Cheat(kind=HoardingLayer)).checks["no copy survives"]
    assert not check.passed
    assert check.figure == sum(t.nbytes for t in ASIDE[: len(ASIDE) // 2])  # the canary's second cache hoards again


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


def test_the_audit_does_not_take_its_own_states_for_a_copy(session: Session) -> None:
    """At 16 tokens a layer's keys are no larger than the hidden states that the audit itself holds."""
    assert Auditor(session, 16, 8, ["int8"]).examine("int8").checks["no copy survives"].passed
