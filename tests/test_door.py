"""What plug-ins import stays where it is; whether its types hold is ``mypy``'s to say (``test_new_evaluator.py``)."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PUBLIC = {
    "kvbench": "CorpusSpec EvaluatorSpec MethodSpec ModelSpec RunSpec __version__ make_cache run",
    "kvbench.methods.base": "METHODS Eviction Method check_window expand must_divide param resolve",
    "kvbench.caches.layer": "LayerCache LayerContext Restored TokenView prompt_view",
    "kvbench.caches.attend": "attend causal",
    "kvbench.caches.ledger": "ByteLedger Part",
    "kvbench.caches.needs": "Needs",
    "kvbench.evaluators.base": (
        "BASELINE HEADLINE Better Evaluator Evidence Figure Grid Measured MethodRecords RunSpec Stage Summary Table Unit UnitContext param"
    ),
}
"""Module → the names that a plug-in may rely on; ARCHITECTURE.md names the modules."""
SHOWN = {
    "kvbench.caches.basis": "expand",
    "kvbench.caches.buffers": "TokenBuffer",
    "kvbench.caches.dense": "DenseLayer",
    "kvbench.caches.observe": "Observer",
    "kvbench.caches.stores": "DenseStore LowRankStore QuantStore",
    "kvbench.evaluators.trial": "tried",
    "kvbench.formats": "fixed",
    "kvbench.instruments.tiny": "FAMILIES make_tiny_model",
    "kvbench.instruments.verify": "Sizes conformance",
    "kvbench.spec.budgets": "Range Settings",
}
"""What the guides show beside them."""

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(("module", "names"), [*PUBLIC.items(), *SHOWN.items()])
def test_public_names_stay(module: str, names: str) -> None:
    home = import_module(module)
    for name in names.split():
        assert hasattr(home, name), name
        foreign = getattr(getattr(home, name), "__module__", module) != module
        assert not foreign or name in home.__all__, f"{name} is handed on, and mypy's strict users cannot see it"


def test_the_pages_name_them() -> None:
    paragraphs = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("\n\n")
    (passage,) = [found for found in paragraphs if "may import and rely on:" in found.replace("\n", " ")]
    passage = passage.replace("\n", " ").split("rely on:")[1]
    named = re.findall(r"`(kvbench[\w.]*|\.\w+)`", passage)
    assert [f"kvbench.caches{name}" if name.startswith(".") else name for name in named] == list(PUBLIC)


def test_what_evaluators_are_built_of_brings_no_torch() -> None:
    script = "import sys, kvbench.evaluators.base, kvbench.evaluators.trial, kvbench.methods.base; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False"]


def test_types_travel_with_the_package() -> None:
    assert (ROOT / "kvbench" / "py.typed").is_file()
