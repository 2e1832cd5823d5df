"""How far arithmetic alone moves a row's scores: the same tokens once more, in another shape.

In exact arithmetic a prompt read in pieces is the prompt, and a continuation in pieces the continuation, for every method: the
conformance suite holds that to 1e-10 in float64. In the run's own number formats a library adds up the same products in another
order where the shape is another, and each hidden state is rounded otherwise. Mostly that moves a score in its last digits. But a
number on the edge of two codes, or of two numbers of the cache's format, falls to the other side; on channels that are hundreds of
times larger than the others (Qwen2's keys) one level is more than all that the others hold, and the score moves for good. The row
is then known no better than that, however narrow its interval over samples is.

What is walked again is the first row of one batch in :data:`EVERY`, alone: its prompt and as many of its first scored tokens as come
to a sixteenth of all that is scored, cut as a :class:`Shape` says, by the baseline too, since KL is taken against it. A prompt's
attention over pieces is another kernel than over the whole; a stream's is the same for any pieces, and libraries sum four rows as
they sum four thousand, so there the first and the last :data:`SINGLY` tokens come one by one, and only the last are scored. What
came of it is summed by :mod:`kvbench.metrics.rounding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kvbench.caches.attend import attend
from kvbench.caches.buffers import TokenBuffer
from kvbench.caches.cache import CaptureLayer, KVCache, capture_cache, captured
from kvbench.caches.layer import LayerContext, TokenView, prompt_view
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Observer
from kvbench.instruments.protocol import Prompt, Runner
from kvbench.instruments.scoring import TokenScores, score
from kvbench.methods.method import Method
from kvbench.metrics.rounding import MEASURES

EVERY = 16
"""One batch in this many is walked again, the first among them."""
TOKENS = 64
"""Scored tokens of a sample that are walked again at least, where it has as many; methods that walk token by token pay for each."""
SINGLY = 16
"""Tokens at either end of a stream that come one by one, the last of them scored."""


@dataclass(frozen=True)
class Shape:
    """Another way through the same tokens.

    Attributes:
        name: How records call it. ends: Where further pieces end, as fractions of the tokens, after one that comes alone.
    """

    name: str
    ends: tuple[float, ...]

    def pieces(self, tokens: Tensor, singly: int = 1) -> list[Tensor]:
        """``tokens`` ``[B, n]`` cut in order, the first ``singly`` and, if they are several, the last as many each alone.

        Even one alone takes all that follow off the path of a whole prompt's attention.
        """
        count = tokens.shape[1]
        ends = {int(count * end) | 1 for end in self.ends}  # odd sizes: no kernel's tile divides them
        alone = {*range(1, singly + 1), *(range(count - singly, count) if singly > 1 else ())}
        inner = sorted(cut for cut in ends | alone if 0 < cut < count)
        return [tokens[:, start:end] for start, end in pairwise([0, *inner, count])]


PIECES = Shape("pieces", (0.43,))


class Reshaped:
    """One sequence, to be scored in another shape by each method.

    Args:
        runner: The run's. tokens: ``[1, C + S]``, of which the last S are scored. split: C. batches: How many the run has.
        needs: What the methods to come want to know of the prompt. shape: How the tokens are cut.
    """

    def __init__(self, runner: Runner, tokens: Tensor, split: int, needs: Needs, batches: int, shape: Shape = PIECES) -> None:
        self.runner, self.shape, self.split = runner, shape, split
        streams = runner.options.protocol == "streaming"
        self.tokens = tokens[:, : split + (SINGLY if streams else scored_again(tokens.shape[1] - split, batches))]
        self.prompt: Prompt | None = None
        if not streams:
            self.prompt = prefill(runner, self.tokens[:, :split], needs, shape)

    @property
    def targets(self) -> Tensor:
        """The scored tokens ``[1, n]``."""
        return self.tokens[:, self.split :]

    def hidden(self, method: Method) -> Tensor | None:
        """Hidden states ``[1, n, hidden]`` that predict the targets; ``None`` where there is no memory left for them."""
        with suppress(torch.OutOfMemoryError):
            return self._hidden(method)
        return None

    @torch.inference_mode()
    def _hidden(self, method: Method) -> Tensor:
        fed, count = self.tokens[:, :-1], self.targets.shape[1]
        if self.prompt is None:
            return self._walk(self.runner.cache(method), fed, SINGLY)[:, -count:]
        cache = self.runner.compress(method, self.prompt)
        first = self.prompt.last_hidden[:, None].to(fed.device)
        rest = fed[:, self.split :]
        return torch.cat((first, self._walk(cache, rest).to(first.device)), 1) if rest.shape[1] else first

    def _walk(self, cache: KVCache, tokens: Tensor, singly: int = 1) -> Tensor:
        return torch.cat([self.runner.forward(piece, cache) for piece in self.shape.pieces(tokens, singly)], 1)

    def score(self, hidden: Mapping[str, Tensor], baseline: str) -> dict[str, TokenScores]:
        """Scores of hidden states by label, the baseline's among them."""
        return score(self.runner, hidden, self.targets, baseline)


def movement(scored: TokenScores, again: TokenScores) -> dict[str, Any]:
    """By how much the first row's scores moved; sums over the tokens that were walked again.

    Args:
        scored: As recorded. again: The first tokens of its first row in another shape, ``[1, n]``.

    Raises:
        FloatingPointError: a score is NaN or infinite.
    """
    count = again.nll.shape[1]
    found: dict[str, Any] = {"tokens": count}
    for name in MEASURES:
        by = getattr(again, name)[0].double() - getattr(scored, name)[0, :count].double()
        if not bool(torch.isfinite(by).all()):
            raise FloatingPointError(f"{name} of {count} tokens is NaN or infinite when they come in another shape")
        found |= {name: float(by.sum()), f"{name}_square": float(by.square().sum()), f"{name}_max": float(by.abs().max())}
    return found


def scored_again(count: int, batches: int) -> int:
    """How many of a sample's ``count`` scored tokens are walked again: the more samples there are, the more they may cost."""
    return min(count, max(TOKENS, count * min(batches, EVERY) // EVERY))


def reshaped(runner: Runner, tokens: Tensor, split: int, needs: Needs, batches: int) -> Reshaped | None:
    """A :class:`Reshaped`, or ``None`` where a second prompt has no room: no figure is to fail for want of its rounding."""
    with suppress(torch.OutOfMemoryError):
        return Reshaped(runner, tokens, split, needs, batches)
    return None


def prefill(runner: Runner, tokens: Tensor, needs: Needs, shape: Shape) -> Prompt:
    """As :meth:`Runner.prefill` of ``[B, C]`` tokens, piece by piece, each over all that came before."""
    return Prompt.of(partial(_in_pieces, runner, tokens, needs, shape))


def _in_pieces(runner: Runner, tokens: Tensor, needs: Needs, shape: Shape) -> tuple[list[TokenView], Tensor]:
    """Views of the prompt, and its last hidden state."""
    whole = capture_cache(runner.geometry, needs, runner.artefacts)
    cache = KVCache([_Pieces(layer.context, layer.needs) for layer in whole.layers], whole.method)
    for piece in shape.pieces(tokens):
        hidden = runner.forward(piece, cache)
    for layer in cache.layers:
        layer.finish()
    return captured(cache), hidden[:, -1].clone()


class _Pieces(CaptureLayer):
    """Keeps a prompt that comes in several forwards, uncompressed."""

    def __init__(self, context: LayerContext, needs: Needs) -> None:
        super().__init__(context, needs)
        self.kept = TokenBuffer("keys", context.dtype), TokenBuffer("values", context.dtype)
        self.states: list[Tensor] = []

    def _forward(self, q: Tensor, k: Tensor, v: Tensor, scaling: float, padding: Tensor | None) -> Tensor:
        for buffer, fresh in zip(self.kept, (k, v), strict=True):
            buffer.append(fresh)
        keys, values = (buffer.view() for buffer in self.kept)
        if self.observer is None:
            self.observer = Observer(self.needs, scaling, self.context.rope, self.context.artefacts)
        self.observer.follow(q, keys, self.seen, self.hidden)
        self.states += [self.hidden] if self.needs.hidden and self.hidden is not None else []
        self.seen += q.shape[2]
        return attend(q, keys, values, scaling)

    def finish(self) -> None:
        """Hand over what methods compress, as if it had come at once."""
        keys, values = (buffer.view().contiguous() for buffer in self.kept)  # as a forward's own are: methods may view them
        if self.observer is None:
            raise RuntimeError("a prompt that never came cannot be handed over")
        if self.states:
            self.observer.hidden = torch.cat(self.states, 1)
        self.prompt = prompt_view(keys, values, self.scaling, self.observer, self.context)


def is_walked_again(batch: int) -> bool:
    """Whether the ``batch``-th batch of windows is one that is walked again."""
    return batch % EVERY == 0
