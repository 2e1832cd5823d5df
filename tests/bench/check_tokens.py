"""Whether the fused decode path writes the plain path's tokens, method by method, on a real model.

A fast path that reads the cache a little wrongly still writes fluent text, so its times are worth nothing until its tokens are
the model's. The prompt is prefilled once for all methods. Each method's cache is then made twice: the fused path decodes
greedily from one, and the tokens it wrote go through the other in one exact forward of the plain path, whose first choice must
be the same at every step. Where it is not, the gap between both candidates' logits is set beside the plain path's own rounding
noise (how far such gaps move between one forward of the same tokens and one by one with every product rounded otherwise): within
twice that it is a ``tie``.

A method that stores codes is asked more. Numbers that differ by rounding may lie on two sides of the boundary of two codes, and the
code that flips moves logits by far more than rounding does. So the plain path is also made to read the codes that the kernels stored.
Columns: ``left`` is the largest gap of which that leaves a difference; ``flipped`` of how many codes differ from the plain path's own,
by how many ``levels``, and how far ``beyond`` the boundary (in levels) its numbers lie, whose own ``rounding`` is so much; ``drifted``
is how many differ in its own cache, with all that followed from the first. Gaps beyond the noise are a ``code flip`` where ``left``
is within the noise and ``beyond`` within a few times that rounding. Everything else is ``WRONG``, codes that rounding does not
explain too where no token differs, and this ends with 1.

    python tests/bench/check_tokens.py                                        # embedded model, float32, every method
    python tests/bench/check_tokens.py --device cuda --dtype bfloat16 --batch 4
    python tests/bench/check_tokens.py --methods snapkv+int4,v_lowrank:bits=4 --steps 64
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
from tabulate import tabulate

from kvbench.instruments.agreement import Agreement, agreement
from kvbench.instruments.protocol import Prompt
from kvbench.instruments.session import Session
from kvbench.methods.base import expand, resolve
from kvbench.models.weights import silent
from kvbench.spec import EvaluatorSpec, ModelSpec, RunSpec

METHODS = "all,snapkv+int4,adakv+int4,adakv+int8,int4:group=64,int4:k_bits=2,v_bits=2,group=64,v_lowrank:bits=4,h2o:decode=grow"
HEADS = ["method", "read path", "verdict", "agreeing", "first at", "gap", "largest gap", "noise", "left"]
STORED_HEADS = ["flipped", "of", "levels", "beyond", "rounding", "drifted", "seconds"]
Found = dict[str, Any]


def main() -> None:
    given = _arguments()
    session = _open(given)
    prompt = session.runner.prefill(session.batch(0)[:, : given.context], session.needs(list(session.methods)))
    found = []
    for label in session.methods:
        found.append(_checked(session, label, prompt, given.steps))
        print(*(str(cell) for cell in _row(found[-1])), found[-1]["reason"], sep="  ", file=sys.stderr, flush=True)
    where = torch.cuda.get_device_name() if session.loaded.device.type == "cuda" else "CPU"
    model = f"{session.spec.model.id} in {given.dtype} on {where}"
    print(f"{model}: {given.steps} greedy tokens behind {given.context}, batch {given.batch}")
    print(tabulate([_row(one) for one in found], HEADS + STORED_HEADS, disable_numparse=True, colalign=("left",) * 3 + ("right",) * 13))
    print(*(f"{one['method']}: {one['reason']}" for one in found if one["reason"]), sep="\n")
    print(
        json.dumps(
            {"bench": "tokens", **vars(given), "model": session.spec.model.id, "on": where, "torch": torch.__version__, "rows": found}
        )
    )
    raise SystemExit(any(one["verdict"] in ("WRONG", "failed") for one in found))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ModelSpec().id)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    return parser.parse_args()


def _open(given: argparse.Namespace) -> Session:
    spec = RunSpec(
        model=ModelSpec(given.model, given.dtype, device=given.device), methods=expand([given.methods]),
        evaluators=(EvaluatorSpec("perplexity"),), context=given.context, continuation=given.steps, samples=given.batch,
        batch_size=given.batch,
    ).validate()  # fmt: skip
    return Session.open(spec, {m.label: resolve(m, spec) for m in spec.methods}, silent)


def _checked(session: Session, label: str, prompt: Prompt, steps: int) -> Found:
    started = time.perf_counter()
    try:
        found = agreement(session.runner, session.methods[label], prompt, steps)
    except Exception as error:  # one method's failure is its row
        found, verdict = Agreement(0, (), "fused", f"{type(error).__name__}: {error}"), "failed"
    else:
        verdict = found.verdict
    session.runner.folds.held.clear()
    session.release()
    return {"method": label, "verdict": verdict, "agreeing": found.agreeing, "seconds": time.perf_counter() - started, **asdict(found)}


def _row(found: Found) -> list[str]:
    steps = f"{found['agreeing']}/{found['steps']}" if found["steps"] else "–"
    seconds = f"{found['seconds']:.1f}"
    return [found["method"], found["read_path"], found["verdict"], steps, *_gaps(found), *_stored(found["stored"]), seconds]


def _gaps(found: Found) -> list[str]:
    differing, left = found["differing"], max((one["gap"] for one in found["unexplained"]), default=0.0)
    noise = [f"{found['noise']:.2e}"] if found["noise"] is not None else ["–"]
    last = [f"{left:.2e}" if found["stored"] else "–"]
    if not differing:
        return ["–", "–", "–", *noise, *last]
    first, largest = differing[0], max(one["gap"] for one in differing)
    return [str(first["step"]), f"{first['gap']:.2e}", f"{largest:.2e}", *noise, *last]


def _stored(stored: Found | None) -> list[str]:
    if stored is None:
        return ["–"] * 6
    flipped = f"{stored['flipped']} + {stored['prompt']} of the prompt" if stored["prompt"] else str(stored["flipped"])
    beyond, rounding = (f"{stored[name]:.1e}" for name in ("beyond", "rounding"))
    return [flipped, f"{stored['codes']:,}", str(stored["levels"]), beyond, rounding, f"{stored['drifted']:,}"]


if __name__ == "__main__":
    main()
