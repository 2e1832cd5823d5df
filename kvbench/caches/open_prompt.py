"""A prompt that comes in several forwards: held as it is until its last token is there, then compressed as one that came whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvbench.caches.attend import attend
from kvbench.caches.buffers import TokenBuffer
from kvbench.caches.compat import prompt_in_pieces
from kvbench.caches.layer_context import LayerContext
from kvbench.caches.ledger import Part
from kvbench.caches.observe import Observer
from kvbench.errors import UsageError


class OpenPrompt:
    """What has come of a prompt of ``tokens`` tokens.

    Args:
        observer: Follows it for the method that will compress it. dtype: Of its keys and values.
    """

    def __init__(self, tokens: int, observer: Observer, dtype: torch.dtype) -> None:
        self.tokens, self.observer = tokens, observer
        self.keys, self.values = TokenBuffer("open prompt, keys", dtype), TokenBuffer("open prompt, values", dtype)
        self._hidden: list[Tensor] = []

    @property
    def complete(self) -> bool:
        return self.keys.length == self.tokens

    def add(self, q: Tensor, k: Tensor, v: Tensor, scaling: float, hidden: Tensor | None) -> Tensor:
        """Uncompressed attention ``[B, Hq, n, D]`` of the next n tokens over all that have come.

        Raises:
            UsageError: more tokens than the prompt has.
        """
        first, n = self.keys.length, q.shape[2]
        if first + n > self.tokens:
            hint = "make_cache(..., prompt_tokens=) is the whole prompt's length"
            raise UsageError(f"{first + n} tokens have come of a prompt of {self.tokens}", hint=hint)
        self.keys.append(k)
        self.values.append(v)
        self.observer.follow(q, self.keys.view(), first, hidden)
        if self.observer.needs.hidden and hidden is not None:
            self._hidden.append(hidden)
            self.observer.hidden = torch.cat(self._hidden, 1) if self.complete else hidden
        return attend(q, self.keys.view(), self.values.view(), scaling)

    def parts(self) -> Iterator[Part]:
        """What is held meanwhile."""
        yield from self.keys.parts()
        yield from self.values.parts()
        yield from self.observer.parts()
        yield from (Part("open prompt, hidden states", hidden, hidden.nbytes) for hidden in self._hidden)


def announced(context: LayerContext) -> int | None:
    """Tokens of the whole prompt whose first are coming, where that was said; ``None``: what comes is all of it."""
    return context.prompt_tokens or (prompt_in_pieces() if context.later == "refuse" else None)


def refused(tokens: int) -> UsageError:
    """Why ``tokens`` at once cannot follow a prompt that was compressed."""
    return UsageError(
        f"{tokens} tokens in one forward after the prompt, which is compressed already: they would stay as they are, "
        "and the cache would not be what one prompt gives",
        hint="make a new cache for the longer prompt; a prompt that comes in pieces has its length in make_cache(..., prompt_tokens=n); "
        'make_cache(..., later="append") stores later tokens as decoded ones are',
    )
