"""The transplant: no hiding place survives it, and nobody who counts what he reads is accused."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hiding import PLACES, ByContent, Hiding
from torch import Tensor

from kvbench.caches.attend import attend
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.ledger import Part
from kvbench.instruments.audit import Auditor, Verdict
from kvbench.instruments.session import Session
from kvbench.instruments.tiny import make_tiny_config
from kvbench.methods.base import Eviction, Method, expand, resolve
from kvbench.spec import EvaluatorSpec, ModelSpec, RunSpec

pytestmark = pytest.mark.fast
CONTEXT = 96
COMPOSED = (
    "snapkv:decode=hold,interval=4", "h2o:interval=3", "snapkv+kivi:bits=2,residual=32", "adakv+int4", "adakv:decode=hold,interval=4",
    "kvzap:threshold=-1.1,window=32", "kvzap:threshold=-1.1,window=32+int4", "kvzap:threshold=-1.1,window=32+kivi:residual=32",
    "hybrid_5x", "minicache:gamma=0.3", "turboquant:bits=4,recent=16", "kivi:bits=2,residual=32", "think", "asymkv",
)  # fmt: skip
STREAMED = (
    "h2o",
    "tova",
    "snapkv+int4",
    "kivi:bits=2,residual=32",
    "kvzap:threshold=-1.1,window=16",
    "kvzap:threshold=-1.1,window=16+int4",
)


def opened(labels: Any, **spec: Any) -> Session:
    model = ModelSpec("tiny", "float32", cache_dtype="float32", device="cpu", random_weights=True, config=make_tiny_config("qwen2"))
    run = RunSpec(model=model, methods=expand(labels, **_only(spec)), evaluators=(EvaluatorSpec("speed"),), context=CONTEXT, **spec)
    return Session.open(run, {s.label: resolve(s, run) for s in run.methods}, lambda *_: None)


def _only(spec: dict[str, Any]) -> dict[str, Any]:
    return {"protocol": spec["protocol"]} if "protocol" in spec else {}


@pytest.fixture(scope="module")
def session() -> Session:
    return opened(["all", *COMPOSED])


@pytest.fixture(scope="module")
def auditor(session: Session) -> Auditor:
    return Auditor(session, CONTEXT, 8, list(session.methods))


@dataclass(frozen=True)
class Made(Eviction):
    """A method of one kind of layer."""

    name: ClassVar[str] = "made"
    kind: type[LayerCache] = Hiding

    def score(self, tokens: TokenView) -> Tensor:
        return -tokens.keys.norm(dim=-1)

    def layer(self, context: LayerContext) -> LayerCache:
        return self.kind(context, self) if issubclass(self.kind, Hiding) else self.kind(context)


def examined(auditor: Auditor, method: Method) -> Verdict:
    auditor.session.methods["made"] = method  # type: ignore[index]
    return auditor.examine("made")


@pytest.mark.parametrize("place", PLACES)
def test_a_copy_is_caught_wherever_it_is_hidden(place: str, auditor: Auditor, tmp_path: Path) -> None:
    Hiding.folder = tmp_path
    found = examined(auditor, Made(kind=PLACES[place]))
    assert not found.checks["transplant"].passed, found.to_plain()
    assert found.checks["canary"].passed  # half of its answer is honest, so that nothing else tells
    assert found.label == "simulated"


def test_a_copy_that_is_found_by_what_is_counted_is_told_by_a_change_of_that(auditor: Auditor) -> None:
    found = examined(auditor, Made(kind=ByContent))
    assert found.label == "simulated"
    assert "name of something else" in found.checks["canary"].detail


def test_what_was_left_behind_is_named(auditor: Auditor) -> None:
    assert "layers[0].copy" in examined(auditor, Made(kind=PLACES["numpy"])).checks["transplant"].detail


@pytest.mark.parametrize("label", ["baseline", *(s.label for s in expand(["all"]) if s.label != "baseline"), *COMPOSED])
def test_every_method_answers_by_what_it_counts(label: str, auditor: Auditor) -> None:
    check = auditor.examine(label).checks["transplant"]
    assert (check.passed, check.figure) == (True, 0), check


@pytest.fixture(scope="module")
def streaming() -> Auditor:
    return Auditor(opened(STREAMED, protocol="streaming", chunk_size=3), CONTEXT, 8, STREAMED)


@pytest.mark.parametrize("label", STREAMED)
def test_every_method_answers_by_what_it_counts_while_streaming(label: str, streaming: Auditor) -> None:
    check = streaming.examine(label).checks["transplant"]
    assert (check.passed, check.figure) == (True, 0), check
    assert not {"prompt", "other_prompt"} & vars(streaming).keys(), (
        "a stream's cache takes tokens as they come, and no prompt is compressed"
    )


class Stored(LayerCache):
    """What a plug-in's author would write: attributes, and a plain list of parts."""

    dtype: ClassVar[torch.dtype] = torch.float8_e4m3fn
    step: ClassVar[float] = 1.0

    def __init__(self, context: LayerContext) -> None:
        super().__init__(context)
        self.k: Any = None
        self.v: Any = None

    def code(self, x: Tensor) -> Tensor:
        return x.to(self.dtype) if self.dtype.is_floating_point else (x / self.step).round().to(self.dtype)

    def joined(self, old: Tensor | None, x: Tensor) -> Tensor:
        new = self.code(x)
        return new if old is None else torch.cat([old.view(torch.uint8), new.view(torch.uint8)], 2).view(self.dtype)

    @property
    def length(self) -> int:
        return int(self.k.shape[2])

    def compress(self, prompt: TokenView) -> None:
        self.append(prompt.keys, prompt.values)

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.k, self.v = self.joined(self.k, keys), self.joined(self.v, values)

    def attend(self, q: Tensor) -> Tensor:
        return attend(q, self.k.to(q.dtype) * self.step, self.v.to(q.dtype) * self.step, self.scaling)

    def parts(self) -> Any:
        yield Part("keys", self.k, self.k.nbytes)
        yield Part("values", self.v, self.v.nbytes)


class Int8(Stored):
    dtype, step = torch.int8, 1 / 16


class Int16(Stored):
    dtype, step = torch.int16, 1 / 2048


class Signs(Stored):
    """A bit a number, kept as booleans."""

    dtype = torch.bool

    def code(self, x: Tensor) -> Tensor:
        return x > 0

    def attend(self, q: Tensor) -> Tensor:
        return attend(q, self.k.to(q.dtype) - 0.5, self.v.to(q.dtype) - 0.5, self.scaling)


class Roomy(LayerCache):
    """Every second token in a block allotted beforehand; how far it is filled is a plain number, tokens lie along the second axis."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__(context)
        self.room = torch.full((2, 160, context.kv_heads, context.head_dim), float("nan"))
        self.n = 0

    @property
    def length(self) -> int:
        return self.n

    def compress(self, prompt: TokenView) -> None:
        self.append(prompt.keys[:, :, ::2], prompt.values[:, :, ::2])

    def append(self, keys: Tensor, values: Tensor) -> None:
        end = self.n + keys.shape[2]
        for side, x in enumerate((keys, values)):
            self.room[side, self.n : end] = x[0].transpose(0, 1)
        self.n = end

    def attend(self, q: Tensor) -> Tensor:
        keys, values = (self.room[side, : self.n].transpose(0, 1)[None] for side in (0, 1))
        return attend(q, keys, values, self.scaling)

    def parts(self) -> Any:
        yield Part("tokens", self.room, self.room.nbytes // 160 * self.n)


class Ragged(LayerCache):
    """Heads keep tokens by a threshold, in lists of chunks of their own, with lengths and a counter as plain numbers."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__(context)
        self.chunks: list[list[Any]] = [[] for _ in range(context.kv_heads)]
        self.lengths = [0] * context.kv_heads
        self.calls = 0

    @property
    def length(self) -> int:
        return max(self.lengths)

    def compress(self, prompt: TokenView) -> None:
        size = prompt.keys.norm(dim=-1)
        self._add(prompt.keys, prompt.values, size > size.median())

    def append(self, keys: Tensor, values: Tensor) -> None:
        self._add(keys, values, torch.ones(keys.shape[:3], dtype=torch.bool))

    def _add(self, keys: Tensor, values: Tensor, mask: Tensor) -> None:
        self.calls += 1
        for head, chunks in enumerate(self.chunks):
            kept = mask[0, head]
            chunks.append((keys[0, head, kept].clone(), values[0, head, kept].clone()))
            self.lengths[head] += int(kept.sum())

    def attend(self, q: Tensor) -> Tensor:
        outs = []
        for rows, chunks, n in zip(q.chunk(len(self.chunks), 1), self.chunks, self.lengths, strict=True):
            keys, values = (torch.cat([pair[side] for pair in chunks])[None, None, :n] for side in (0, 1))
            outs.append(attend(rows, keys, values, self.scaling))
        return torch.cat(outs, 1)

    def parts(self) -> Any:
        for keys, values in (pair for chunks in self.chunks for pair in chunks):
            yield Part("keys", keys, keys.nbytes)
            yield Part("values", values, values.nbytes)


@dataclass
class Segment:
    """Tokens of one stretch of text."""

    keys: Tensor
    values: Tensor
    size: int


class Segmented(LayerCache):
    """A list of objects, as many as the text has stretches."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__(context)
        self.segments: list[Segment] = []

    @property
    def length(self) -> int:
        return sum(segment.size for segment in self.segments)

    def compress(self, prompt: TokenView) -> None:
        loud = prompt.keys.norm(dim=-1)[0].mean(0)
        cuts = [0, *(1 + torch.nonzero(loud[1:] > loud.mean() + loud.std())[:, 0]).tolist(), prompt.seen]
        for start, end in pairwise(cuts):
            self.append(prompt.keys[:, :, start:end:2], prompt.values[:, :, start:end:2])

    def append(self, keys: Tensor, values: Tensor) -> None:
        self.segments.append(Segment(keys.half(), values.half(), keys.shape[2]))

    def attend(self, q: Tensor) -> Tensor:
        keys, values = (torch.cat([getattr(s, side)[:, :, : s.size] for s in self.segments], 2) for side in ("keys", "values"))
        return attend(q, keys.to(q.dtype), values.to(q.dtype), self.scaling)

    def parts(self) -> Any:
        for segment in self.segments:
            yield Part("keys", segment.keys, segment.keys.nbytes)
            yield Part("values", segment.values, segment.values.nbytes)


class Bounded(Ragged):
    """Heads keep tokens by a threshold, in one tensor; where each begins is a list of plain numbers."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__(context)
        self.bounds = [0] * (context.kv_heads + 1)
        self.tokens = torch.zeros(0, 2, context.head_dim)

    def _add(self, keys: Tensor, values: Tensor, mask: Tensor) -> None:
        fresh = [torch.stack((keys[0, head, kept], values[0, head, kept]), 1) for head, kept in enumerate(mask[0])]
        heads = [torch.cat((old, new)) for old, new in zip(self._heads(), fresh, strict=True)]
        self.tokens = torch.cat(heads)
        self.lengths = [len(head) for head in heads]
        self.bounds = [0, *torch.tensor(self.lengths).cumsum(0).tolist()]

    def _heads(self) -> list[Tensor]:
        return [self.tokens[start:end] for start, end in pairwise(self.bounds)]

    def attend(self, q: Tensor) -> Tensor:
        heads = zip(q.chunk(self.context.kv_heads, 1), self._heads(), strict=True)
        return torch.cat([attend(rows, *head.movedim(1, 0)[:, None, None], self.scaling) for rows, head in heads], 1)

    def parts(self) -> Any:
        yield Part("tokens", self.tokens, self.tokens.nbytes)


class OwnModule(Stored):
    """Keeps what it stores as parameters of a module of its own."""

    dtype = torch.float16
    k = property(lambda self: self.module.k, lambda self, x: self._keep("k", x))
    v = property(lambda self: self.module.v, lambda self, x: self._keep("v", x))

    def _keep(self, name: str, x: Tensor | None) -> None:
        self.module = vars(self).get("module") or torch.nn.Module()
        self.module.register_parameter(name, None if x is None else torch.nn.Parameter(x, requires_grad=False))

    def joined(self, old: Tensor | None, x: Tensor) -> Tensor:
        return x.half() if old is None else torch.cat((old.data, x.half()), 2)


class InCircle(Stored):
    """What it holds leads back to itself."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__(context)
        self.owners = [{"layer": self}]


@pytest.mark.parametrize("kind", [Stored, Int8, Int16, Signs, Roomy, Ragged, Segmented, Bounded, OwnModule, InCircle])
def test_no_honest_storage_is_accused(kind: type[LayerCache], auditor: Auditor) -> None:
    found = examined(auditor, Made(kind=kind))
    assert found.label == "real", found.to_plain()


class Decoy(Stored):
    """Counts one byte a number and reads another copy, counted nowhere; what is counted sways nothing that can be seen."""

    def append(self, keys: Tensor, values: Tensor) -> None:
        super().append(keys, values)
        before = getattr(self, "aside", (keys[:, :, :0], values[:, :, :0]))
        self.aside = tuple(torch.cat((old, x), 2) for old, x in zip(before, (keys, values), strict=True))

    def attend(self, q: Tensor) -> Tensor:
        return attend(q, *self.aside, self.scaling) + 1e-7 * super().attend(q)


def test_what_sways_nothing_is_not_read(auditor: Auditor) -> None:
    assert examined(auditor, Made(kind=Decoy)).label == "no-op"
