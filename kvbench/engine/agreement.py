"""Whether the fused decode path writes the tokens that the plain path would.

The fused path decodes greedily; what it wrote is then fed to the method's own cache in one exact forward, whose choice
at every step is compared with the token that stands there. A difference does not spread, since both see the same tokens: each
has its own gap between the two candidates, and is a tie where that is within the plain path's own rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvbench.engine.decode import FusedDecoding

if TYPE_CHECKING:
    from kvbench.engine.protocol import Prompt, Runner
    from kvbench.methods.base import Method

PROBED = 32
"""Steps over which the plain path's rounding is measured, where there is a difference to explain."""
CANDIDATES = 8
"""First choices of a step whose gaps to the very first are looked at."""


@dataclass(frozen=True)
class Differing:
    """A step at which the plain path would have written another token.

    Attributes:
        row, step: Where; ``step`` counts from 0, the first that read the compressed cache.
        written: The fused path's token. wanted: The plain path's.
        gap: By how much the plain path's logits prefer ``wanted``.
    """

    row: int
    step: int
    written: int
    wanted: int
    gap: float


@dataclass(frozen=True)
class Agreement:
    """What came of comparing one method's paths.

    Attributes:
        steps: Tokens compared in each row; 0 where the method is not fused.
        differing: Steps at which the paths differ, in order.
        read_path: ``fused``, or ``reference`` where no kernel reads what the method stores.
        reason: Why it is not fused, or its steps are not captured; else empty.
        noise: By how much a gap between candidates differs at most, on the plain path alone, between one forward and token by
            token, over the first :data:`PROBED` steps; ``None`` where nothing differs.
    """

    steps: int
    differing: tuple[Differing, ...]
    read_path: str
    reason: str = ""
    noise: float | None = None

    @property
    def agreeing(self) -> int:
        """Steps at which every row agrees."""
        return self.steps - len({one.step for one in self.differing})

    @property
    def holds(self) -> bool:
        """Whether every difference is a tie: no gap beyond twice the noise, which was seen over fewer steps."""
        return all(one.gap <= 2 * (self.noise or 0.0) for one in self.differing)


@torch.inference_mode()
def agreement(runner: Runner, method: Method, prompt: Prompt, steps: int) -> Agreement:
    """Decode ``steps`` greedy tokens after ``prompt`` on the fused path, and see what the plain path makes of them.

    Args:
        prompt: Prefilled with what ``method`` needs; left as it is. Each path compresses a cache of its own.
        steps: Decode steps; all read compressed storage, since the prompt itself predicts the token that the first is fed.
    """
    from kvbench.fused.layer import NotFused

    try:
        fed, written, reason = _decoded(runner, method, prompt, steps)
    except NotFused as error:
        return Agreement(0, (), "reference", str(error))
    hidden = runner.forward(fed, runner.compress(method, prompt))
    found = tuple(_differing(runner.logits(hidden), written))
    noise = _noise(runner, method, prompt, fed[:, :PROBED], hidden[:, :PROBED]) if found else None
    return Agreement(steps, found, "fused", reason, noise)


def _decoded(runner: Runner, method: Method, prompt: Prompt, steps: int) -> tuple[Tensor, Tensor, str]:
    """Tokens ``[B, steps]`` that each step was fed, those it wrote, and why steps were not captured.

    Raises:
        NotFused: no kernel reads what the method stores.
    """
    decoding = FusedDecoding(runner, runner.compress(method, prompt), steps)
    try:
        first = runner.logits(prompt.last_hidden).argmax(-1, keepdim=True)
        decoding.start(first[:, 0])
        written = decoding.steps(steps).clone()
        return torch.cat((first.to(written.device), written[:, :-1]), 1), written, decoding.reason
    finally:
        decoding.close()


def _differing(logits: Tensor, written: Tensor) -> list[Differing]:
    """Where ``written`` ``[B, n]`` is not the first choice of ``logits`` ``[B, n, vocabulary]``."""
    wanted = logits.argmax(-1)
    found = []
    for row, step in (wanted != written.to(wanted.device)).nonzero().tolist():
        token, best = int(written[row, step]), int(wanted[row, step])
        gap = float(logits[row, step, best].double() - logits[row, step, token].double())
        found.append(Differing(row, step, token, best, gap))
    return sorted(found, key=lambda one: one.step)


def _noise(runner: Runner, method: Method, prompt: Prompt, fed: Tensor, hidden: Tensor) -> float:
    """How far rounding moves a gap between candidates: ``hidden`` is of the tokens ``fed`` in one forward, the same one by one is made."""
    at_once = runner.logits(hidden).double()
    by_token = runner.logits(runner.stepwise(fed, runner.compress(method, prompt))).double()
    candidates = at_once.topk(CANDIDATES, -1).indices
    gaps = [logits.gather(-1, candidates) for logits in (at_once, by_token)]
    moved = [gap[..., :1] - gap[..., 1:] for gap in gaps]
    return float((moved[0] - moved[1]).abs().max())
