"""Memory after many samples over memory after ten: what a run keeps of each sample, it pays at the thousandth.

The worker's own units of perplexity run one after the other, without the journal: the resident memory of the process, and on
a GPU what its allocator holds and has reserved, are noted on the way. The run must end within 50 MiB of where ten samples
had brought it.

    python tests/bench/bench_growth.py
    python tests/bench/bench_growth.py --samples 100 --methods snapkv
    python tests/bench/bench_growth.py --device cuda --layers 8
"""

from __future__ import annotations

from argparse import Namespace

import torch
from benching import arguments, closing, option, picked, resident, table, talk
from opening import heard, opened, with_random_text

from kvbench.engine.worker import do
from kvbench.evaluators.perplexity import Perplexity
from kvbench.formats import MIB
from kvbench.record.collecting import keep_for_good
from kvbench.spec import ModelSpec

ALLOWED = 50 * MIB
FIRST = 10
METHODS = "baseline,random,snapkv,kivi,knorm,int4,h2o"


def main() -> None:
    given = arguments(
        __doc__, samples=1000, context=128, continuation=32, methods=METHODS,
        layers=option(30, "of a random model of the default preset's width"), device="cpu",
    )  # fmt: skip
    marks = sorted({1, FIRST, *(given.samples * part // 10 for part in (1, 2, 4, 6, 8)), given.samples})
    noted = _measure(given, marks)
    mebibytes = [{"samples": at, **{name: size / MIB for name, size in noted[at].items()}} for at in marks]
    table(mebibytes, {"samples": "{samples:,}", **{name: f"{{{name}:,.1f}}" for name in noted[FIRST]}})
    growth = {name: noted[given.samples][name] - size for name, size in noted[FIRST].items()}
    facts = {"noted": noted, "growth": growth, "allowed": ALLOWED, "met": max(growth.values()) <= ALLOWED}
    closing("growth", **picked(given, "samples methods device"), **facts)


def _measure(given: Namespace, marks: list[int]) -> dict[int, dict[str, int]]:
    """Bytes by figure after each of ``marks`` samples."""
    config = {
        "model_type": "llama", "hidden_size": 576, "num_hidden_layers": given.layers, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "vocab_size": 49_152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    }  # fmt: skip
    model = ModelSpec("random", "auto", "bfloat16", device=given.device, random_weights=True, config=config)
    session = with_random_text(opened(model, given.methods, **picked(given, "context continuation samples")))
    evaluator, noted = Perplexity(), {}
    keep_for_good()
    for done, unit in enumerate(evaluator.units(session.spec, list(session.methods)), 1):
        do(unit, evaluator, session, heard, set())
        if done in marks:
            noted[done] = _held(given.device)
            talk(f"{done} samples: {noted[done]['resident'] / MIB:,.0f} MiB resident")
    return noted


def _held(device: str) -> dict[str, int]:
    held = {"resident": resident()}
    if device.startswith("cuda"):
        held |= {"GPU, held": torch.cuda.memory_allocated(), "GPU, reserved": torch.cuda.memory_reserved()}
    return held


if __name__ == "__main__":
    main()
