"""The rules of the house: who may import whom, and what the quick commands never load."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from kvbench.record.results import SCHEMA
from kvbench.spec import EvaluatorSpec, RunSpec

ROOT = Path(__file__).parent.parent


def test_import_contracts_hold() -> None:
    pytest.importorskip("importlinter")
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_files_import_each_other_in_a_circle() -> None:
    """Annotations too: whoever reads one of two files that name each other has to read both."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("kvbench", exclude_type_checking_imports=False, cache_dir=None)
    above = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(above).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


ONE_MEANING = {
    "audit": "the evaluator, and the instrument that it asks",
    "base": "what every display, evaluator or method is",
    "composed": "the method of two, and its layer",
    "dense": "tokens as they are, and their kernel",
    "glue": "norms, gates and products, and their kernels",
    "layer": "one layer's cache, and the same taken over into the kernels' layout",
    "memory": "the evaluator, and the plot of what it measured",
    "perplexity": "the evaluator, and the plot of what it measured",
    "registered": "where names of methods, or of evaluators, become classes",
    "rope": "the rotary embedding, and a file's words for it",
    "run": "the question, and the command that asks it",
    "speed": "the evaluator, its command, and the plot of what it measured",
    "tables": "what a room's measurements look like",
    "verify": "the checks, and their command",
    "window": "the newest tokens, and their kernels",
}
"""Names that several rooms have, and the one thing that they mean there."""


def test_modules_of_one_name_mean_one_thing() -> None:
    names = Counter(file.stem for file in (ROOT / "kvbench").rglob("*.py") if not file.stem.startswith("__"))
    assert {name for name, times in names.items() if times > 1} == set(ONE_MEANING), "another name, or a reason here"


def loaded(*argv: str, unwanted: str) -> set[str]:
    """Which of the unwanted modules a command has loaded by its end; the command must succeed."""
    script = (
        "import sys\nfrom kvbench.cli import main\ncode = main(sys.argv[2:])\n"
        "found = [m for m in sys.argv[1].split() if m in sys.modules]\nprint(code, *found, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, unwanted, *argv], capture_output=True, text=True, cwd=ROOT)
    code, *found = done.stderr.splitlines()[-1].split()
    assert code == "0", done.stderr
    return set(found)


@pytest.fixture
def result(tmp_path: Path) -> str:
    """A result with one method that was not measured: enough for ``compare`` and ``show``."""
    spec = RunSpec(evaluators=(EvaluatorSpec("perplexity"), EvaluatorSpec("memory"), EvaluatorSpec("speed")))
    row = {"method": "knorm", "method_name": "Knorm", "status": "done", "error": None, "audit": None, "measured": []}
    document = {
        "schema": SCHEMA, "run": "r", "complete": True, "kvbench_version": "0", "protocol": "prefill", "spec": spec.to_plain(),
        "environment": {}, "model": {}, "corpus": {}, "baseline_perplexity": None, "results": [row], "records": {}, "lost": {},
        "seconds": 0.0,
    }  # fmt: skip
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document))
    return str(path)


HEAVY = "torch transformers datasets textual"


def test_compare_loads_nothing_heavy(result: str) -> None:
    assert loaded("compare", result, result, unwanted=f"{HEAVY} rich numpy scipy kvbench.displays.full") == set()


def test_show_loads_no_model_library(result: str) -> None:
    assert loaded("show", result, unwanted=HEAVY) == set()


def test_the_fused_path_runs_without_triton_where_there_is_no_gpu() -> None:
    """``path=fused`` on a CPU is plain PyTorch. (That Triton is not in ``sys.modules`` would say nothing: torch imports it itself.)"""
    script = (
        "import sys\nsys.modules['triton'] = None  # as if it were not installed\n"
        "import torch\ntorch.cuda.is_available = lambda: False\n"
        "from importlib import import_module\n"
        "for name in sys.argv[1:]: import_module(name)\n"
        "from kvbench.instruments.agreement import agreement\n"
        "from kvbench.caches.cache import CacheOptions, Geometry, use_kvbench_attention\n"
        "from kvbench.instruments.protocol import Runner\nfrom kvbench.instruments.tiny import make_tiny_model\n"
        "from kvbench.methods.int8 import Int8\n"
        "model, method = make_tiny_model('qwen2'), Int8()\nuse_kvbench_attention(model)\n"
        "runner = Runner(model, Geometry.of(model), {}, CacheOptions())\n"
        "print(agreement(runner, method, runner.prefill(torch.arange(3, 40)[None], method.needs), 4).read_path)\n"
        "print(*(m for m in sys.modules if m.startswith('kvbench.fused.kernels')))"
    )
    fused = (ROOT / "kvbench" / "fused").glob("[a-z]*.py")
    names = ["kvbench.evaluators.speed", "kvbench.evaluators.capacity", *(f"kvbench.fused.{file.stem}" for file in fused)]
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["fused"]
