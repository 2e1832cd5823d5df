"""The stub engine as a fixture: real supervisor, worker and journal, no model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvbench
from kvbench.evaluators import registered
from kvbench.methods.base import METHODS
from kvbench.record import schema
from kvbench.spec import EvaluatorSpec, MethodSpec, RunSpec

STUBS = Path(__file__).parent / "stubs"
HOME = Path(kvbench.__file__).parents[1]
"""Where this process has kvbench from; those that it starts shall have no other."""


def forget_registries() -> None:
    for registry in (METHODS, registered.EVALUATORS):
        registry.forget()
    registered._evaluator.cache_clear()
    schema._record_of.cache_clear()


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process and every process it starts use the stub engine."""
    monkeypatch.setenv("PYTHONPATH", f"{STUBS}{os.pathsep}{HOME}")
    monkeypatch.syspath_prepend(str(STUBS))
    for name in ("kvbench.instruments.session", "kvbench.evaluators.audit"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name))
    import stub_engine

    stub_engine.install()
    forget_registries()
    yield
    forget_registries()


def stub_spec(options: str = "ms=2", methods: str = "baseline random knorm int8", samples: int = 4, model: str = "stub") -> RunSpec:
    """A small question for the stub engine."""
    from kvbench.spec import ModelSpec

    return RunSpec(
        model=ModelSpec(id=model), methods=tuple(MethodSpec.parse(m) for m in methods.split()),
        evaluators=(EvaluatorSpec.parse(f"counting:{options}"),), samples=samples,
    )  # fmt: skip
