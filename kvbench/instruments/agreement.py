"""Whether the fused decode path writes the tokens that the plain path would.

The fused path decodes greedily; what it wrote is then fed to the method's own cache in one exact forward, whose choice
at every step is compared with the token that stands there. A difference does not spread, since both see the same tokens: each
has its own gap between the two candidates, and is a tie where that is within the plain path's own rounding.

Where codes are stored, rounding may do more: a number that lies on the boundary of two codes gets one on this path and its neighbour
on that, and a level of an outlier channel moves logits by far more than the rounding that chose it. So the forward is made
once more, its stores told the codes that the kernels stored (:mod:`kvbench.instruments.dictated_codes`). A difference is such a *flip* if

- every code, scale and zero point that was stored is one that the plain path's own numbers give, moved by no more than rounding
  moves them: a code that is rounded wrongly lies up to half a level off, rounding in float32 a ten-thousandth of one; and
- the plain path, reading those codes, writes the fused path's token at *every* step, ties apart.

The first says that the kernels store rightly, the second that they read rightly; both are asked of every method that stores codes,
whether a token differs or not. Flipping codes at random instead would show that flips can move a gap so far, not that they did.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kvbench.instruments.decode import FusedDecoding
from kvbench.instruments.dictated_codes import Told, codes_of, dictate
from kvbench.instruments.stored_codes import Stored, compared, rounding

if TYPE_CHECKING:
    from kvbench.instruments.protocol import Prompt, Runner
    from kvbench.methods.method import Method

Verdict = Literal["same", "tie", "code flip", "WRONG", "not fused"]
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
            token with products rounded otherwise, over the first :data:`PROBED` steps; ``None`` where nothing differs.
        stored: The codes that were stored, against the plain path's; ``None`` where it stores none.
        unexplained: As ``differing``, of the plain path reading the codes that the fused path stored.
    """

    steps: int
    differing: tuple[Differing, ...]
    read_path: str
    reason: str = ""
    noise: float | None = None
    stored: Stored | None = None
    unexplained: tuple[Differing, ...] = ()

    @property
    def agreeing(self) -> int:
        """Steps at which every row agrees."""
        return self.steps - len({one.step for one in self.differing})

    @property
    def verdict(self) -> Verdict:
        """What the differences are.

        ``same``: there is none. ``tie``: no gap is beyond twice the noise, which was seen over fewer steps. ``code flip``: some
        are, and codes that rounding explains account for all of them. ``WRONG``: anything else, and codes that it does not explain.
        """
        if self.read_path != "fused":
            return "not fused"
        if self.stored is not None and not (self.stored.holds and self._are_ties(self.unexplained)):
            return "WRONG"
        if self._are_ties(self.differing):
            return "tie" if self.differing else "same"
        return "code flip" if self.stored is not None and self.stored.drifted else "WRONG"

    @property
    def holds(self) -> bool:
        """Whether the fused path is right, as far as can be told; or there is none."""
        return self.verdict != "WRONG"

    def _are_ties(self, differing: tuple[Differing, ...]) -> bool:
        return all(one.gap <= 2 * (self.noise or 0.0) for one in differing)


@torch.inference_mode()
def agreement(runner: Runner, method: Method, prompt: Prompt, steps: int) -> Agreement:
    """Decode ``steps`` greedy tokens after ``prompt`` on the fused path, and see what the plain path makes of them.

    Args:
        prompt: Prefilled with what ``method`` needs; left as it is. Each path compresses a cache of its own.
        steps: Decode steps; all read compressed storage, since the prompt itself predicts the token that the first is fed.
    """
    from kvbench.fused.layer import NotFused

    try:
        fed, written, told, reason = _decoded(runner, method, prompt, steps)
    except NotFused as error:
        return Agreement(0, (), "reference", str(error))
    cache = runner.compress(method, prompt)
    hidden = runner.forward(fed, cache)
    plain = Agreement(steps, tuple(_differing(runner.logits(hidden), written)), "fused", reason)
    if any(keys or values for keys, values in told):
        drifted = sum(store.differing()[0] for store in dictate(cache, told))
        del cache
        return _with_codes(runner, method, prompt, plain, fed, written, told, drifted)
    if not plain.differing:
        return plain
    at_once = runner.logits(hidden[:, :PROBED])
    with rounded_otherwise(runner.model):
        one_by_one = runner.logits(runner.stepwise(fed[:, :PROBED], runner.compress(method, prompt)))
    return replace(plain, noise=_noise(at_once, one_by_one))


def _with_codes(
    runner: Runner, method: Method, prompt: Prompt, plain: Agreement, fed: Tensor, written: Tensor, told: Told, drifted: int
) -> Agreement:
    """``plain``, and what the codes that the fused path stored make of it."""
    cache = runner.compress(method, prompt)
    stores = dictate(cache, told)
    damage = sum(sum(store.differing()) for store in stores)
    hidden = runner.forward(fed, cache)
    left, stored = tuple(_differing(runner.logits(hidden), written)), replace(compared(stores), drifted=drifted, prompt=damage)
    if stored.holds and not plain.differing and not left:
        return replace(plain, stored=stored)
    cache = runner.compress(method, prompt)
    others = dictate(cache, told)
    at_once = runner.logits(hidden[:, :PROBED])
    with rounded_otherwise(runner.model):
        one_by_one = runner.logits(runner.stepwise(fed[:, :PROBED], cache))
        for start in range(PROBED, plain.steps, PROBED):  # some of the first are coded only now
            runner.forward(fed[:, start : start + PROBED], cache)
    stored = replace(stored, rounding=max(stored.rounding, rounding(stores, others)))
    return replace(plain, noise=_noise(at_once, one_by_one), stored=stored, unexplained=left)


def _decoded(runner: Runner, method: Method, prompt: Prompt, steps: int) -> tuple[Tensor, Tensor, Told, str]:
    """Tokens ``[B, steps]`` that each step was fed, those it wrote, the codes it left, and why steps were not captured.

    Raises:
        NotFused: no kernel reads what the method stores.
    """
    decoding = FusedDecoding(runner, runner.compress(method, prompt), steps)
    try:
        first = runner.logits(prompt.last_hidden).argmax(-1, keepdim=True)
        decoding.start(first[:, 0])
        written = decoding.steps(steps).clone()
        return torch.cat((first.to(written.device), written[:, :-1]), 1), written, codes_of(decoding._state), decoding.reason
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


@contextmanager
def rounded_otherwise(model: Any) -> Iterator[None]:
    """Every product's results moved at random by up to half a unit in their last place, as if its sums had been rounded otherwise.

    Walking the same tokens in another shape may round nothing otherwise: a library may well sum one row as it sums many.
    """

    def moved(module: torch.nn.Module, inputs: object, out: Tensor) -> Tensor:
        by = torch.rand(out.shape, generator=random, device=out.device, dtype=torch.float64) - 0.5
        return (out.double() * (1 + torch.finfo(out.dtype).eps * by)).to(out.dtype)

    random = torch.Generator(next(model.parameters()).device).manual_seed(0)
    hooks = [module.register_forward_hook(moved) for module in model.modules() if isinstance(module, torch.nn.Linear)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _noise(at_once: Tensor, one_by_one: Tensor) -> float:
    """How far rounding moves a gap between candidates: logits ``[B, n, vocabulary]`` of the same tokens on two walks."""
    candidates = at_once.topk(CANDIDATES, -1).indices
    gaps = [logits.double().gather(-1, candidates) for logits in (at_once, one_by_one)]
    moved = [gap[..., :1] - gap[..., 1:] for gap in gaps]
    return float((moved[0] - moved[1]).abs().max())
