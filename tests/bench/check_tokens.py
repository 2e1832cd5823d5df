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

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from benching import Column, arguments, closing, table, talk, timed
from opening import opened

from kvbench.formats import NONE
from kvbench.instruments.agreement import Agreement, agreement
from kvbench.instruments.protocol import Prompt
from kvbench.instruments.session import Session
from kvbench.spec import ModelSpec

METHODS = "all,snapkv+int4,adakv+int4,adakv+int8,int4:group=64,int4:k_bits=2,v_bits=2,group=64,v_lowrank:bits=4,h2o:decode=grow"
Found = dict[str, Any]
COLUMNS: dict[str, Column] = {
    "method": "{method}", "read path": "{read_path}", "verdict": "{verdict}",
    "agreeing": lambda found: f"{found['agreeing']}/{found['steps']}" if found["steps"] else NONE,
    "first at": lambda found: str(found["differing"][0]["step"]), "gap": lambda found: f"{found['differing'][0]['gap']:.2e}",
    "largest gap": lambda found: f"{_largest(found['differing']):.2e}" if found["differing"] else NONE, "noise": "{noise:.2e}",
    "left": lambda found: f"{_largest(found['unexplained']):.2e}" if found["stored"] else NONE,
    "flipped": lambda found: _flipped(found["stored"]),
    "of": "{stored[codes]:,}", "levels": "{stored[levels]:}", "beyond": "{stored[beyond]:.1e}", "rounding": "{stored[rounding]:.1e}",
    "drifted": "{stored[drifted]:,}", "seconds": "{seconds:.1f}",
}  # fmt: skip


def main() -> None:
    given = arguments(
        __doc__, model=ModelSpec().id, device="auto", dtype={"default": "float32", "choices": ["float32", "bfloat16", "float16"]},
        methods=METHODS, steps=256, context=512, batch=1,
    )  # fmt: skip
    sizes = {"context": given.context, "continuation": given.steps, "samples": given.batch, "batch_size": given.batch}
    session = opened(ModelSpec(given.model, given.dtype, device=given.device), given.methods, evaluator="perplexity", **sizes)
    prompt = session.runner.prefill(session.batch(0)[:, : given.context], session.needs(list(session.methods)))
    found = [_checked(session, label, prompt, given.steps) for label in session.methods]
    where = torch.cuda.get_device_name() if session.loaded.device.type == "cuda" else "CPU"
    print(f"{session.spec.model.id} in {given.dtype} on {where}: {given.steps} greedy tokens behind {given.context}, batch {given.batch}")
    table(found, COLUMNS)
    print(*(f"{one['method']}: {one['reason']}" for one in found if one["reason"]), sep="\n")
    closing("tokens", **vars(given) | {"model": session.spec.model.id}, on=where, torch=torch.__version__, rows=found)
    raise SystemExit(any(one["verdict"] in ("WRONG", "failed") for one in found))


def _checked(session: Session, label: str, prompt: Prompt, steps: int) -> Found:
    found, seconds = timed(partial(_tried, session, label, prompt, steps))
    session.runner.folds.held.clear()
    session.release()
    talk(f"{label}: {found['verdict']}, {found['agreeing']} of {found['steps']} in {seconds:.1f} s {found['reason']}")
    return {"method": label, **found, "seconds": seconds}


def _tried(session: Session, label: str, prompt: Prompt, steps: int) -> Found:
    try:
        found = agreement(session.runner, session.methods[label], prompt, steps)
    except Exception as error:  # one method's failure is its row
        failed = Agreement(0, (), "fused", f"{type(error).__name__}: {error}")
        return {**asdict(failed), "verdict": "failed", "agreeing": failed.agreeing}
    return {**asdict(found), "verdict": found.verdict, "agreeing": found.agreeing}


def _flipped(stored: Found) -> str:
    return f"{stored['flipped']} + {stored['prompt']} of the prompt" if stored["prompt"] else str(stored["flipped"])


def _largest(differing: list[Found]) -> float:
    return max((one["gap"] for one in differing), default=0.0)


if __name__ == "__main__":
    main()
