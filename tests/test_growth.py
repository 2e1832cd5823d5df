"""What a sample leaves behind: nothing, whether or not Python happens to look for circles."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from kvbench.caches.cache import CacheOptions, Geometry, use_kvbench_attention
from kvbench.calibration import provide
from kvbench.engine.worker import do
from kvbench.evaluators.base import Evaluator
from kvbench.instruments.protocol import Runner
from kvbench.instruments.tiny import make_tiny_model
from kvbench.methods.base import METHODS, expand, resolve
from kvbench.models.weights import silent
from kvbench.spec import MethodSpec, RunSpec, Unit


@contextmanager
def circles() -> Iterator[list[Any]]:
    """Everything that only a search for circles frees, from what the block made and let go of."""
    gc.collect()
    found: list[Any] = []
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def rows() -> list[str]:
    """Every row of ``all``, as it is tried on a tiny model."""
    trials = ((spec, METHODS.load(spec.name).trial) for spec in expand(["all"]))
    return [MethodSpec.parse(trial).label if trial and not spec.params else spec.label for spec, trial in trials]


@pytest.fixture(scope="module")
def runner() -> Runner:
    model = make_tiny_model("qwen2")
    use_kvbench_attention(model)
    geometry = Geometry.of(model)
    names = {name for label in rows() for name in resolve(MethodSpec.parse(label), RunSpec()).artefacts}
    tokens = torch.randint(128, (512,), generator=torch.Generator().manual_seed(1))
    found = provide(names, model, geometry, tokens, weights_hash=None, folder=None, stage=silent)
    return Runner(model, geometry, found, CacheOptions(None, context=48))


@pytest.mark.parametrize("label", rows())
def test_tensors_of_a_sample_go_with_it(runner: Runner, label: str) -> None:
    method = resolve(MethodSpec.parse(label), RunSpec())
    tokens = torch.randint(3, 128, (1, 60), generator=torch.Generator().manual_seed(2))

    def sample() -> None:
        prompt = runner.prefill(tokens[:, :48], method.needs)
        runner.continuation(prompt, runner.compress(method, prompt), tokens[:, 48:])

    sample()  # what is made once and kept is not meant
    with circles() as found:
        sample()
    assert [type(o).__name__ for o in found if isinstance(o, torch.Tensor)] == []


class Ring:
    """An object that holds itself, as a plug-in's might."""

    def __init__(self) -> None:
        self.me = self


@dataclass(frozen=True)
class Ringed(Evaluator):
    name: ClassVar[str] = "ringed"
    title: ClassVar[str] = "Leaves circles."
    left: ClassVar[list[weakref.ref[Ring]]] = []

    def run(self, unit: Unit, session: Any, context: Any) -> None:
        self.left.append(weakref.ref(Ring()))


def test_a_circle_of_a_plug_in_goes_with_its_unit() -> None:
    gc.disable()
    try:
        session: Any = SimpleNamespace(loaded=SimpleNamespace(dtype="torch.float32"))
        do(Unit("ringed/0", "ringed", 0, ("baseline",)), Ringed(), session, lambda _event: None, set())
    finally:
        gc.enable()
    assert [made() for made in Ringed.left] == [None]
