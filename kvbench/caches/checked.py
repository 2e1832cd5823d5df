"""What is asked of a method's scores and of the tokens that it keeps, at the place where they are used.

A score that is NaN ranks nothing, and yet a sort puts it somewhere: what comes out looks like a measurement. One that is
+∞ means *kept for certain*; where every token of a long head is, nothing is ranked either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvbench.errors import MethodError

SHORT = 64
"""Tokens up to which all may be certain: a prompt shorter than a method's window, or than its sinks."""
SCORES = "scores must be numbers that rank: not NaN, not -inf, and not +inf (kept for certain) for every token of a head"
CHANGED = "the method changed the prompt that it was given, which all methods share"
SPOILT = "the method's score changed the tokens that it was given to score"
HINTS = {
    SCORES: "torch.isfinite(scores).all() in the method's score",
    **dict.fromkeys((CHANGED, SPOILT), "work on copies: tokens.keys.clone()"),
}


class Watch:
    """Looks at numbers without making a device wait: on the CPU at once, elsewhere when somebody may wait (:meth:`look`)."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        """What would be said → whether it was so at any time, a boolean on the device that nobody has looked at."""
        self._times = 0

    def is_due(self) -> bool:
        """Whether this time is the first, the second, the fourth …: what costs too much to be looked at every time."""
        self._times += 1
        return self._times & (self._times - 1) == 0

    def see(self, broken: Tensor, text: str = SCORES) -> None:
        """``broken`` is a boolean of no dimension, and ``text`` what it would mean.

        Raises:
            MethodError: it is true, and on the CPU.
        """
        self.found[text] = self.found[text] | broken if text in self.found else broken
        if broken.device.type == "cpu":
            self.look()

    def look(self) -> None:
        """Wait for the device, and say what was seen.

        Raises:
            MethodError: something was broken.
        """
        found, self.found = self.found, {}
        for text, broken in found.items():
            if bool(broken):
                raise MethodError(text, hint=HINTS[text])


def finite(scores: Tensor) -> Tensor:
    """A boolean of no dimension: neither NaN nor −∞ is among ``scores``."""
    found: Tensor = (scores > float("-inf")).all()
    return found


def checked_scores(scores: Any, keys: Tensor, watch: Watch | None = None, *, ranks: bool = True) -> Tensor:
    """``scores`` as they are, if they are one finite number for each token.

    Args:
        scores: What a method returned for tokens of these ``keys`` ``[B, Hkv, T, D]``.
        watch: Where to look at the numbers later; ``None`` looks now.
        ranks: Whether some tokens have to go: where all stay, all may be certain.

    Raises:
        MethodError: says what is wrong with them.
    """
    found = _formed(scores, keys.shape[:3], "token")
    if found.is_floating_point():
        _see(_broken(found, ranks and found.shape[-1] > SHORT), watch)
    return found


def checked_channels(scores: Any, keys: Tensor) -> Tensor:
    """``scores`` as they are, if they are one finite number for each row, KV head and channel of ``keys`` ``[B, Hkv, T, D]``.

    Raises:
        MethodError: says what is wrong with them.
    """
    found = _formed(scores, (*keys.shape[:2], keys.shape[3]), "channel")
    _see(_broken(found, ranks=True), None)
    return found


def _see(broken: Tensor, watch: Watch | None) -> None:
    """Through ``watch`` if there is one, else at once."""
    if watch is not None:
        watch.see(broken)
        return
    own = Watch()
    own.see(broken)
    own.look()


def _formed(scores: Any, shape: Sequence[int], what: str) -> Tensor:
    if not isinstance(scores, Tensor) or tuple(scores.shape) != tuple(shape):
        given = f"{list(scores.shape)}" if isinstance(scores, Tensor) else f"{type(scores).__name__}"
        raise MethodError(f"scores are {given}; they must be one for each row, KV head and {what}, {list(shape)}")
    if scores.dtype == torch.bool or scores.is_complex():
        raise MethodError(f"scores are {scores.dtype}; they must be numbers that rank", hint="return scores.float()")
    form: Tensor = scores
    return form


def _broken(scores: Tensor, ranks: bool) -> Tensor:
    """A boolean: NaN or −∞ among ``scores`` ``[B, Hkv, T]``, or a head all +∞."""
    bad = ~finite(scores)
    return bad | (scores == float("inf")).all(-1).any() if ranks else bad


def checked_index(index: Any, tokens: int) -> Tensor:
    """``index`` ``[B, Hkv, m]`` as it is, if it names tokens that there are, each once in its head.

    Args:
        tokens: How many there are.

    Raises:
        MethodError: says what is wrong with it.
    """
    if not isinstance(index, Tensor) or index.ndim != 3 or index.is_floating_point() or index.dtype == torch.bool:
        given = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
        raise MethodError(f"tokens to keep are named by {given}; they must be indices [rows, KV heads, tokens]", hint=_KEPT)
    if index.numel() == 0:
        return index
    inside = bool((index.amin() >= 0) & (index.amax() < tokens))
    if not inside:
        raise MethodError(f"tokens to keep are {int(index.amin())} to {int(index.amax())}, and there are {tokens}", hint=_KEPT)
    ordered = index.sort(-1).values
    twice = (ordered[..., 1:] == ordered[..., :-1]).any()
    if bool(twice):
        raise MethodError("tokens to keep name a token of a head twice", hint=_KEPT)
    return index


_KEPT = "take them from kvbench.caches.evicted.best_tokens"


def checked_count(count: Any, tokens: int) -> int:
    """How many of ``tokens`` a method keeps, at most all of them.

    Raises:
        MethodError: no whole number above 0.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise MethodError(f"{count!r} of {tokens} tokens are to be kept; it must be a whole number, at least 1", hint="max(1, int(n))")
    return min(count, tokens)


def checked_mask(mask: Any, keys: Tensor) -> Tensor:
    """``mask`` ``[B, Hkv, T]`` of the tokens that each head keeps, of ``keys`` ``[B, Hkv, T, D]``, as it is.

    Raises:
        MethodError: of another shape, or not boolean.
    """
    shape = tuple(keys.shape[:3])
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != shape:
        given = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise MethodError(f"tokens kept are marked by {given}; they must be booleans {list(shape)}", hint="mask = scores >= threshold")
    return mask
