"""How tokens pass through a model and its cache: prefill, continuation, streaming.

``prefill``: C tokens through ordinary causal attention, once for all methods; each method then
compresses, and the continuation reads what it stored. ``streaming``: a method's cache from the first
token on. In both the continuation is one forward; attention walks it through each layer's cache by
blocks (:mod:`kvbench.caches.layer`), which equals feeding one token at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.caches.cache import Artefacts, CacheOptions, Geometry, KVCache, build_cache, capture_cache, captured, decoder_of
from kvbench.caches.checked import CHANGED, HINTS
from kvbench.caches.folding import Folds, folded
from kvbench.caches.joint import JointCache
from kvbench.caches.layer import TokenView
from kvbench.caches.marks import marks, same
from kvbench.caches.needs import Needs
from kvbench.errors import MethodError
from kvbench.methods.method import Method


@dataclass(frozen=True)
class Prompt:
    """A prefilled prompt that any number of methods may compress.

    Attributes:
        views: Keys, values and observations, one a layer.
        last_hidden: Final hidden state of the last token, ``[B, hidden]``; it predicts the first scored token.
        again: Makes the views again, as they were.
        marks: What it was: no method may change what the next one reads.
    """

    views: list[TokenView]
    last_hidden: Tensor
    again: Callable[[], list[TokenView]] = field(repr=False)
    marks: list[Tensor] = field(repr=False)

    @classmethod
    def of(cls, make: Callable[[], tuple[list[TokenView], Tensor]]) -> Prompt:
        """The prompt whose views and last hidden state ``make`` gives."""
        views, last_hidden = make()
        return cls(views, last_hidden, lambda: make()[0], marks(views))

    def untouched(self) -> bool:
        """Whether it is as it was made."""
        return same(self.marks, marks(self.views))


@dataclass(frozen=True)
class Runner:
    """A model together with what its caches need.

    Attributes:
        model: A ``transformers`` causal model using kvbench's attention.
        geometry: Read off the model. artefacts: Calibrated tensors. options: How caches are used.
        folds: Value bases folded into the model's projections, as far as they were used.
    """

    model: Any
    geometry: Geometry
    artefacts: Artefacts
    options: CacheOptions
    folds: Folds = field(default_factory=Folds, compare=False, repr=False)

    def cache(self, method: Method) -> KVCache:
        """An empty cache of ``method``."""
        return build_cache(method, self.geometry, self.options, self.artefacts)

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, needs: Needs) -> Prompt:
        """Run a prompt ``[B, C]`` once, uncompressed, gathering what methods need."""
        return Prompt.of(partial(self._captured, tokens, needs))

    def _captured(self, tokens: Tensor, needs: Needs) -> tuple[list[TokenView], Tensor]:
        cache = capture_cache(self.geometry, needs, self.artefacts)
        hidden = self.forward(tokens, cache)
        return captured(cache), hidden[:, -1].clone()

    @torch.inference_mode()
    def compress(self, method: Method, prompt: Prompt) -> KVCache:
        """``method``'s cache of the prompt, which is left as it was.

        Raises:
            MethodError: the method changed the prompt; it is made again for the others.
        """
        cache = self.cache(method)
        with self.lent(prompt):
            cache.adopt(prompt.views)
        return cache

    @contextmanager
    def lent(self, prompt: Prompt) -> Iterator[None]:
        """A shared prompt in the hands of one method.

        Raises:
            MethodError: at the end it is not what it was; it is made again for the others.
        """
        try:
            yield
        finally:
            changed = not prompt.untouched()
            if changed:
                prompt.views[:] = prompt.again()
        if changed:
            raise MethodError(CHANGED, hint=HINTS[CHANGED])

    @torch.inference_mode()
    def forward(self, tokens: Tensor, cache: Any) -> Tensor:
        """Final hidden states ``[B, n, hidden]`` of tokens ``[B, n]`` that follow what ``cache`` has seen."""
        seen = cache.get_seq_length()
        positions = torch.arange(seen, seen + tokens.shape[1], device=tokens.device)[None]
        with folded(cache, self.folds):
            out = decoder_of(self.model)(input_ids=tokens, past_key_values=cache, position_ids=positions, use_cache=True)
        hidden: Tensor = out.last_hidden_state
        return hidden

    @torch.inference_mode()
    def together(self, tokens: Tensor, caches: Sequence[KVCache], rows: Sequence[int]) -> Tensor:
        """As :meth:`forward` of several caches at once: ``[Σ rows, n]`` tokens, the rows of one cache after those of the other."""
        if len(caches) == 1:
            return self.forward(tokens, caches[0])
        joint = JointCache(caches, rows)
        out = decoder_of(self.model)(
            input_ids=tokens, past_key_values=joint, position_ids=joint.positions(tokens.shape[1], tokens.device), use_cache=True
        )  # fmt: skip
        hidden: Tensor = out.last_hidden_state
        return hidden

    def stepwise(self, tokens: Tensor, cache: Any) -> Tensor:
        """As :meth:`forward`, one token at a time: the definition that the block form must equal."""
        return torch.cat([self.forward(tokens[:, i : i + 1], cache) for i in range(tokens.shape[1])], 1)

    def continuation(self, prompt: Prompt, cache: KVCache, tokens: Tensor, *, stepwise: bool = False) -> Tensor:
        """Hidden states ``[B, S, hidden]`` that predict the continuation ``tokens`` ``[B, S]``.

        The first comes from the uncompressed prompt; the other S − 1 read compressed storage.

        Raises:
            FloatingPointError, MethodError: as :func:`sound`.
        """
        first = prompt.last_hidden[:, None].to(tokens.device)
        if tokens.shape[1] == 1:
            return first
        walk = self.stepwise if stepwise else self.forward
        return sound(torch.cat((first, walk(tokens[:, :-1], cache).to(first.device)), 1), cache)

    def streaming(self, cache: KVCache, tokens: Tensor, continuation: int, *, stepwise: bool = False) -> Tensor:
        """Hidden states that predict the last ``continuation`` of ``tokens`` ``[B, C + S]``, compressed from the first token.

        Raises:
            FloatingPointError, MethodError: as :func:`sound`.
        """
        walk = self.stepwise if stepwise else self.forward
        return sound(walk(tokens[:, :-1], cache)[:, -continuation:], cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """The head, ``[..., hidden]`` → ``[..., vocabulary]``."""
        head = self.model.get_output_embeddings()
        out: Tensor = head(hidden.to(head.weight.device))
        return out


def sound(hidden: Tensor, cache: KVCache) -> Tensor:
    """``hidden`` as it is, if every number in it is finite and every score on the way did rank.

    Raises:
        MethodError: a score while decoding ranked nothing.
        FloatingPointError: a hidden state is NaN or infinite.
    """
    cache.look()
    broken = ~torch.isfinite(hidden)
    if bool(broken.any()):
        where = broken.any(-1)
        raise FloatingPointError(f"{int(where.sum())} of {where.numel()} final hidden states are NaN or infinite")
    return hidden
