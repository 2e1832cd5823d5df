"""Memory after many samples over memory after ten: what a run keeps of each sample, it pays at the thousandth.

The worker's own units of perplexity run one after the other, without the journal: the resident memory of the process, and on
a GPU what its allocator holds and has reserved, are noted on the way. The run must end within 50 MiB of where ten samples
had brought it.

    python tests/bench/bench_growth.py
    python tests/bench/bench_growth.py --samples 100 --methods snapkv
    python tests/bench/bench_growth.py --device cuda --layers 8
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

from tabulate import tabulate

MIB = 2**20
ALLOWED = 50 * MIB
FIRST = 10
METHODS = "baseline,random,snapkv,kivi,knorm,int4,h2o"


def main() -> None:
    given = _arguments()
    marks = sorted({1, FIRST, *(given.samples * part // 10 for part in (1, 2, 4, 6, 8)), given.samples})
    noted = _measure(given, marks)
    columns = list(noted[FIRST])
    print(tabulate([[at, *(noted[at][name] / MIB for name in columns)] for at in marks], ["samples", *columns], floatfmt=",.1f"))
    growth = {name: noted[given.samples][name] - noted[FIRST][name] for name in columns}
    facts = {"bench": "growth", "samples": given.samples, "methods": given.methods, "device": given.device}
    print(json.dumps({**facts, "noted": noted, "growth": growth, "allowed": ALLOWED, "met": max(growth.values()) <= ALLOWED}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--continuation", type=int, default=32)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--layers", type=int, default=30, help="of a random model of the default preset's width")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def _measure(given: argparse.Namespace, marks: list[int]) -> dict[int, dict[str, int]]:
    """Bytes by figure after each of ``marks`` samples."""
    import torch

    from kvbench.engine.plan import complete, resolve_methods
    from kvbench.engine.worker import do, keep_for_good
    from kvbench.evaluators.perplexity import Perplexity
    from kvbench.instruments.session import Session
    from kvbench.models.weights import silent
    from kvbench.spec import EvaluatorSpec, MethodSpec, ModelSpec, RunSpec, split_list
    from kvbench.texts.corpora import Windows

    model = ModelSpec("random", "auto", "bfloat16", device=given.device, random_weights=True, config=_config(given))
    sizes = {"context": given.context, "continuation": given.continuation, "samples": given.samples}
    methods = tuple(map(MethodSpec.parse, split_list(given.methods)))
    spec = complete(RunSpec(model=model, methods=methods, evaluators=(EvaluatorSpec("speed"),), **sizes))  # "speed": reads no text
    session = Session.open(spec, resolve_methods(spec), silent)
    shape = (given.samples, given.context + given.continuation)
    tokens = torch.randint(3, session.loaded.shape.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    session = replace(session, windows=Windows(tokens, {}))  # type: ignore[arg-type]
    evaluator, noted = Perplexity(), {}
    keep_for_good()
    for done, unit in enumerate(evaluator.units(spec, list(session.methods)), 1):
        do(unit, evaluator, session, lambda _event: None, set())
        if done in marks:
            noted[done] = _held(given.device)
            print(f"{done} samples: {noted[done]['resident'] / MIB:,.0f} MiB resident", file=sys.stderr, flush=True)
    return noted


def _config(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": 576, "num_hidden_layers": given.layers, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "vocab_size": 49_152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    }  # fmt: skip


def _held(device: str) -> dict[str, int]:
    import psutil
    import torch

    held = {"resident": int(psutil.Process().memory_info().rss)}
    if device.startswith("cuda"):
        held |= {"GPU, held": torch.cuda.memory_allocated(), "GPU, reserved": torch.cuda.memory_reserved()}
    return held


if __name__ == "__main__":
    main()
