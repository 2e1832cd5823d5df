"""Peak memory of scoring where logits are the problem: a vocabulary of 152k, 4,096 tokens of context.

The logits of a long continuation of a large vocabulary, held whole for two models together with their softmaxes, take more
memory than the caches under test, and a tool that holds them fails on machines where the methods themselves would run.
kvbench keeps final hidden states and applies the head in slabs; this script shows that nothing else grows either. A child
process builds a small random model with that vocabulary, notes its resident memory, runs the perplexity evaluator on one
window, and reports its highest resident memory since. The growth must stay within the prompt's capture, one method's cache
(both counted from the tensors themselves, afterwards) and 512 MiB for everything else.

    python tests/bench/bench_peak_memory.py
    python tests/bench/bench_peak_memory.py --context 256 --continuation 64 --methods int8
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

MIB = 2**20
ALLOWED = 512 * MIB
"""Beside weights and caches."""
METHODS = "baseline,random,streaming_llm,knorm,snapkv,tova,expected_attention,observed_attention,int8,int4,kivi:bits=2,v_lowrank"


def main() -> None:
    given = _arguments()
    if given.child:
        print(json.dumps(_measure(given)))
        return
    command = [sys.executable, __file__, "--child", *sys.argv[1:]]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    _report(given, json.loads(said.splitlines()[-1]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--continuation", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--methods", default=METHODS, help="The controls, baseline and random, are always among them.")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(given: argparse.Namespace) -> dict[str, Any]:
    """In the child: resident memory before, at the peak of scoring, and what the caches are of that, bytes."""
    import torch

    from kvbench.engine.plan import complete, resolve_methods
    from kvbench.evaluators.perplexity import Perplexity
    from kvbench.instruments.session import Session
    from kvbench.models.weights import silent
    from kvbench.spec import EvaluatorSpec, MethodSpec, ModelSpec, RunSpec, split_list
    from kvbench.texts.corpora import Windows

    model = ModelSpec("wide vocabulary", "float32", device="cpu", random_weights=True, config=_config(given))
    methods = tuple(map(MethodSpec.parse, split_list(given.methods)))
    sizes = {"context": given.context, "continuation": given.continuation, "samples": 1}
    spec = complete(RunSpec(model=model, methods=methods, evaluators=(EvaluatorSpec("speed"),), **sizes))  # "speed": reads no text
    session = Session.open(spec, resolve_methods(spec), silent)
    tokens = torch.randint(given.vocabulary, (1, given.context + given.continuation), generator=torch.Generator().manual_seed(0))
    session = replace(session, windows=Windows(tokens, {}))  # type: ignore[arg-type]
    (unit,) = Perplexity().units(spec, list(session.methods))
    context = _context()
    before, was_reset = _resident(), _reset_peak()
    Perplexity().run(unit, session, context)
    peak = _peak()
    prompt, caches = _caches(session, tokens, given.context)
    weights = session.loaded.info["weights_bytes"]
    return {"before": before, "peak": peak, "was_reset": was_reset, "weights": weights, "prompt": prompt, "caches": caches}


def _config(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "model_type": "qwen2", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 512, "vocab_size": given.vocabulary, "max_position_embeddings": given.context + given.continuation,
        "tie_word_embeddings": False,
    }  # fmt: skip


def _context() -> Any:
    """What the evaluator speaks to: a failure is this script's failure."""
    from kvbench.evaluators.base import UnitContext

    class Context(UnitContext):
        def method_started(self, method: str) -> None:
            print(f"{method}: {_resident() / MIB:,.0f} MiB resident", file=sys.stderr)

        def record(self, method: str, key: str, data: Mapping[str, Any]) -> None:
            """Records are read by no one here."""

        def guard(self, method: str, action: Callable[[], None]) -> bool:
            action()
            return True

    return Context()


def _caches(session: Any, tokens: Any, split: int) -> tuple[int, dict[str, int]]:
    """Bytes of the shared prompt and of each method's cache after the continuation, room for growth included."""
    from kvbench.caches.ledger import storage_bytes

    runner, labels = session.runner, list(session.methods)
    prompt = runner.prefill(tokens[:, :split], session.needs(labels))
    sizes = {}
    for label in labels:
        cache = runner.compress(session.methods[label], prompt)
        runner.continuation(prompt, cache, tokens[:, split:])
        ledger = cache.ledger()
        sizes[label] = ledger.allocated + sum(ledger.artefacts.values())
    return storage_bytes(prompt.views, stop=[id(session.loaded.model)]), sizes


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _reset_peak() -> bool:
    """Forget the peak of building the model, where the system can; else the figure is too high, never too low."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _peak() < _resident() + 16 * MIB  # some systems accept the wish and do nothing


def _peak() -> int:
    """Highest resident memory, bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _report(given: argparse.Namespace, found: dict[str, Any]) -> None:
    largest = max(found["caches"], key=lambda label: found["caches"][label])
    caches = found["prompt"] + found["caches"][largest]
    growth, allowed = found["peak"] - found["before"], caches + ALLOWED
    logits = 4 * given.continuation * given.vocabulary
    rows = [
        ("resident before scoring", found["before"], f"weights {found['weights'] / MIB:,.0f} MiB, interpreter and libraries"),
        ("peak while scoring", found["peak"], "" if found["was_reset"] else "includes loading: this system cannot reset it"),
        ("growth", growth, f"{len(found['caches'])} methods"),
        ("shared prompt", found["prompt"], "keys, values, observations"),
        ("largest cache", found["caches"][largest], largest),
        ("growth beyond caches", growth - caches, f"goal ≤ {ALLOWED // MIB} MiB"),
        ("all told, beyond weights and caches", found["peak"] - found["weights"] - caches, "interpreter and libraries included"),
        ("naive: logits of one method", logits, f"{given.continuation} × {given.vocabulary:,} × 4 bytes"),
        ("naive: with the baseline's and both softmaxes", 4 * logits, ""),
        ("naive: logits of context and continuation", logits // given.continuation * (given.context + given.continuation), ""),
    ]
    shown = [(name, size / MIB, note) for name, size, note in rows]
    print(tabulate(shown, headers=["memory", "MiB", ""], floatfmt=",.1f"))
    facts = {"bench": "peak_memory", "context": given.context, "continuation": given.continuation, "vocabulary": given.vocabulary}
    figures = {"growth": growth, "beyond_caches": growth - caches, "allowed_beyond": ALLOWED, "naive_logits": logits, **found}
    print(json.dumps({**facts, **figures, "met": growth <= allowed}))


if __name__ == "__main__":
    main()
