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
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benching import arguments, closing, highest_resident, methods, picked, resident, table, talk

from kvbench.formats import MIB

if TYPE_CHECKING:
    from kvbench.instruments.session import Session

ALLOWED = 512 * MIB
"""Beside weights and caches."""
METHODS = "baseline,random,streaming_llm,knorm,snapkv,tova,expected_attention,observed_attention,int8,int4,kivi:bits=2,v_lowrank"


def main() -> None:
    given = arguments(
        __doc__, context=4096, continuation=512, vocabulary=151_936, methods=methods(METHODS),
        child={"default": False, "help": argparse.SUPPRESS},
    )  # fmt: skip
    if given.child:
        print(json.dumps(_measure(given)))
        return
    asked = [sys.executable, __file__, "--child", *sys.argv[1:]]
    said = subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True).stdout
    _report(given, json.loads(said.splitlines()[-1]))


def _measure(given: Namespace) -> dict[str, Any]:
    """In the child: resident memory before, at the peak of scoring, and what the caches are of that, bytes."""
    from opening import heard, opened, with_random_text

    from kvbench.engine.worker import do
    from kvbench.evaluators.perplexity import Perplexity
    from kvbench.spec import ModelSpec

    config = {
        "model_type": "qwen2", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 512, "vocab_size": given.vocabulary, "max_position_embeddings": given.context + given.continuation,
        "tie_word_embeddings": False,
    }  # fmt: skip
    model = ModelSpec("wide vocabulary", "float32", device="cpu", random_weights=True, config=config)
    session = with_random_text(opened(model, given.methods, samples=1, **picked(given, "context continuation")))
    (unit,) = Perplexity().units(session.spec, list(session.methods))
    before, was_reset = resident(), _reset_peak()
    do(unit, Perplexity(), session, heard, set())
    peak = highest_resident()
    prompt, caches = _caches(session)
    weights = session.loaded.info["weights_bytes"]
    return {"before": before, "peak": peak, "was_reset": was_reset, "weights": weights, "prompt": prompt, "caches": caches}


def _caches(session: Session) -> tuple[int, dict[str, int]]:
    """Bytes of the shared prompt and of each method's cache after the continuation, room for growth included."""
    from kvbench.caches.ledger import storage_bytes

    runner, tokens, split = session.runner, session.batch(0), session.spec.context
    prompt = runner.prefill(tokens[:, :split], session.needs(list(session.methods)))
    sizes = {}
    for label, method in session.methods.items():
        cache = runner.compress(method, prompt)
        runner.continuation(prompt, cache, tokens[:, split:])
        ledger = cache.ledger()
        sizes[label] = ledger.allocated + sum(ledger.artefacts.values())
        talk(f"{label}: {resident() / MIB:,.0f} MiB resident")
    return storage_bytes(prompt.views, stop=[id(session.loaded.model)]), sizes


def _reset_peak() -> bool:
    """Forget the peak of building the model, where the system can; else the figure is too high, never too low."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return highest_resident() < resident() + 16 * MIB  # some systems accept the wish and do nothing


def _report(given: Namespace, found: dict[str, Any]) -> None:
    largest = max(found["caches"], key=lambda label: found["caches"][label])
    caches = found["prompt"] + found["caches"][largest]
    growth, logits = found["peak"] - found["before"], 4 * given.continuation * given.vocabulary
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
    shown = [{"name": name, "mib": size / MIB, "note": note} for name, size, note in rows]
    table(shown, {"memory": "{name}", "MiB": "{mib:,.1f}", "": "{note}"})
    figures = {"growth": growth, "beyond_caches": growth - caches, "allowed_beyond": ALLOWED, "naive_logits": logits, **found}
    closing("peak_memory", **picked(given, "context continuation vocabulary"), **figures, met=growth <= caches + ALLOWED)


if __name__ == "__main__":
    main()
