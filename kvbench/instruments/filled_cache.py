"""A compressed cache of a prompt that was never prefilled: random keys and values, for time and room alone.

A layer is drawn, compressed and let go before the next one is drawn, so that no more than one layer's dense keys and
values exist beside what is stored. What a method observes of the queries is drawn as well: sizes and the work of
decoding are real, scores mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.caches.buffers import TokenBuffer
from kvbench.caches.cache import KVCache
from kvbench.caches.layer import LayerCache, LayerContext, prompt_view
from kvbench.caches.observe import Observer
from kvbench.caches.surrogate import surrogate_scores
from kvbench.instruments.protocol import Runner
from kvbench.methods.method import Method

MOMENT_QUERIES = 256
"""Queries whose mean and covariance stand for those of the prompt."""
SLAB = 4096
"""Tokens whose hidden states are held at once where only scores of them are kept."""
Check = Callable[[int, int], None]
"""Told the bytes that the layers so far hold and those of the one about to be drawn; raises where they must not be held."""


@dataclass(frozen=True)
class Draw:
    """Seeded normal numbers of one layer.

    Attributes:
        batch, tokens: Sequences and prompt tokens. dtype: The model's. generator: On the layer's device.
    """

    batch: int
    tokens: int
    dtype: torch.dtype
    generator: torch.Generator

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=self.dtype, device=self.generator.device)


class DrawnObserver(Observer):
    """Holds what its ``needs`` ask for as if a prompt had been watched."""

    def draw(self, layer: LayerContext, hidden: int, draw: Draw) -> None:
        """Draw all of it. ``hidden`` is the width of the model's hidden states."""
        needs, wide = self.needs, torch.promote_types(draw.dtype, torch.float32)
        if needs.window:
            self._keep_window(draw(draw.batch, layer.heads, min(needs.window, draw.tokens), layer.head_dim))
        if needs.attention:
            self._sums = TokenBuffer("attention sums", wide)
            self._sums.append(draw(draw.batch, layer.heads, draw.tokens, 1).to(wide).abs())
        for moments in self.moments:
            moments.add(draw(draw.batch, layer.heads, MOMENT_QUERIES, layer.head_dim).to(wide))
        if needs.hidden:
            self.hidden = draw(draw.batch, draw.tokens, hidden)
        for start in range(0, draw.tokens if needs.surrogate else 0, SLAB):
            self._score_slab(draw(draw.batch, min(SLAB, draw.tokens - start), hidden), draw.tokens)

    def _score_slab(self, hidden: Tensor, tokens: int) -> None:
        """Scores of some tokens, in room for all of them."""
        for name in self.needs.surrogate:
            scores = surrogate_scores(hidden, self.artefacts, name)[..., None]
            if name not in self._scores:
                self._scores[name] = TokenBuffer("surrogate scores", scores.dtype)
                self._scores[name].reserve(tokens, like=scores)
            self._scores[name].append(scores)


@torch.inference_mode()
def random_cache(runner: Runner, method: Method, batch: int, tokens: int, seed: int, check: Check | None = None) -> KVCache:
    """``method``'s cache of ``batch`` random prompts of ``tokens`` tokens.

    Args:
        check: Called before each layer; may raise to stop.
    """
    cache = runner.cache(method)
    hidden, held = int(runner.model.config.get_text_config().hidden_size), 0
    for layer, device in zip(cache.layers, runner.geometry.devices, strict=True):
        if check is not None:
            check(held, dense_bytes(runner, batch, tokens))
        generator = torch.Generator(device).manual_seed(seed * 1_009 + layer.context.index)
        _fill(layer, hidden, Draw(batch, tokens, runner.geometry.dtype, generator))
        held += 0 if check is None else layer.ledger().allocated
    return cache


def _fill(layer: LayerCache, hidden: int, draw: Draw) -> None:
    where = layer.context
    observer = DrawnObserver(layer.needs, layer.scaling, where.rope, where.artefacts)
    observer.draw(where, hidden, draw)
    shape = (draw.batch, where.kv_heads, draw.tokens, where.head_dim)
    layer.adopt(prompt_view(draw(*shape), draw(*shape), layer.scaling, observer, where))


def dense_bytes(runner: Runner, batch: int, tokens: int) -> int:
    """One layer's keys and values of ``batch`` prompts as the model computes them."""
    g = runner.geometry
    return 2 * batch * g.kv_heads * tokens * g.head_dim * g.dtype.itemsize
