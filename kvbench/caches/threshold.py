"""Eviction by threshold: a token that has left the sliding window stays if its score says so, in each KV head by itself.

Dynamic Memory Sparsification (arXiv 2506.05345, inference) as KVzap uses it (arXiv 2601.07891, §3). The query at
position i sees token j ≤ i if i − j ≤ window or score(j) ≥ threshold: the newest ``window`` tokens stored before it, and
itself, are never dropped (kvpress 0.5.5, ``DMSPress``, tests what has left the window after a token's own attention).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.caches.attend import fold, unfold
from kvbench.caches.buffers import TokenBuffer
from kvbench.caches.checked import finite
from kvbench.caches.dense import DenseLayer
from kvbench.caches.layer import LayerCache, LayerContext, TokenView
from kvbench.caches.ledger import Part
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Cell, Observer
from kvbench.caches.ragged import MakeCell, SelectedHeads
from kvbench.caches.surrogate import part_names, surrogate_scores

EVERY = 32
"""Tokens between two removals. In between a dropped token is masked, takes room, and is counted."""
BLOCK = 128
"""Most tokens of a block: what is dropped within one takes room until its end."""


class ThresholdLayer(DenseLayer):
    """One row and one KV head.

    Stored tokens, in order of position: those that passed for good, then all from position ``tested`` on, whose verdicts
    are known and not carried out yet.

    Args:
        threshold: Least score that is kept. window: Newest tokens that are kept whatever their score.
        store: Another layer, to which tokens that passed are handed for good; ``None`` keeps them here.
    """

    def __init__(self, context: LayerContext, threshold: float, window: int, store: LayerCache | None = None) -> None:
        super().__init__(context)
        self.threshold, self.window, self.tested, self.store = threshold, window, 0, store
        self.verdicts = TokenBuffer("verdicts", torch.uint8)  # [1, 1, seen − tested, 1]: 1 stays
        self.scores: Tensor | None = None
        """Scores ``[1, 1, n]`` of the block at hand; taken by ``append``."""

    def compress(self, prompt: TokenView) -> None:
        """Take over the tokens that passed and the window, which is scored."""
        if prompt.scores is None:
            raise ValueError("tokens are kept by their scores, and the prompt has none")
        newest = min(prompt.seen, self.window)
        passed = prompt.scores.shape[-1] - newest
        if self.store is not None:
            self._hand_over(prompt, torch.arange(passed, device=prompt.keys.device))
        own = slice(None if self.store is None else passed, None)
        self._store(prompt.keys[:, :, own], prompt.values[:, :, own], prompt.scores[..., passed:])
        self.tested = prompt.seen - newest

    def inner_layers(self) -> Iterator[LayerCache]:
        yield from super().inner_layers()
        if self.store is not None:
            yield self.store

    def _hand_over(self, tokens: TokenView, index: Tensor) -> None:
        """Give ``store`` the tokens at ``index`` ``[m]``, if any."""
        if self.store is not None and len(index):
            self.store.scaling, self.store.seen = self.scaling, self.seen
            self.store.compress(tokens.gathered(index[None, None]))

    @property
    def length(self) -> int:
        return self.keys_store.length + (0 if self.store is None else self.store.length)

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        own = super().read(dtype)
        if self.store is None or self.store.length == 0:
            return own
        passed = self.store.read(dtype)
        return torch.cat((passed[0], own[0]), 2), torch.cat((passed[1], own[1]), 2)

    def places(self, prompt: TokenView) -> Tensor:
        passed = prompt.positions.shape[-1] - min(prompt.seen, self.window)
        if self.store is None or passed == 0:
            return prompt.positions
        index = torch.arange(passed, device=prompt.keys.device)[None, None]
        return torch.cat((self.store.places(prompt.gathered(index)), prompt.positions[..., passed:]), 2)

    def append(self, keys: Tensor, values: Tensor) -> None:
        if self.scores is None:
            raise ValueError("tokens are kept by their scores, and these have none")
        scores, self.scores = self.scores, None
        self._store(keys, values, scores)

    def _store(self, keys: Tensor, values: Tensor, scores: Tensor) -> None:
        super().append(keys, values)
        self.verdicts.append((scores >= self.threshold)[..., None])

    def stable_for(self) -> int | None:
        return BLOCK if self.store is None else EVERY - self.seen % EVERY  # what is handed over reads otherwise from then on

    def attend(self, q: Tensor) -> Tensor:
        keys, values = self.read(q.dtype)
        mask = self._visible(q.shape[2], keys.shape[2], q.device)
        rows = None if mask is None else mask.repeat(q.shape[1], 1)
        return unfold(F.scaled_dot_product_attention(fold(q, 1), keys, values, attn_mask=rows, scale=self.scaling), q.shape[1])

    def _visible(self, m: int, total: int, device: torch.device) -> Tensor | None:
        """``[m, total]``, True where a query may read; ``None`` where one query reads all."""
        if m == 1 and self.tested >= self.seen - self.window:
            return None
        waiting = self.verdicts.view()[0, 0, :, 0] != 0
        at = torch.arange(self.tested, self.tested + len(waiting), device=device)
        asks = torch.arange(self.seen, self.seen + m, device=device)[:, None]
        region = (at <= asks) & (waiting | (at >= asks - self.window))
        return F.pad(region, (total - len(waiting), 0), value=True)

    def settle(self) -> None:
        """At every ``EVERY``-th token, remove what had left the window by then and failed."""
        leaving = self.seen - self.seen % EVERY - self.window - self.tested
        if leaving <= 0:
            return
        stays = self.verdicts.view()[0, 0, :leaving, 0].nonzero()[:, 0]
        if self.store is not None:
            self._hand_over(self._view(), stays)
            self.keys_store.drop_front(leaving)
            self.values_store.drop_front(leaving)
        elif len(stays) < leaving:
            self._remove(stays, leaving)
        self.verdicts.drop_front(leaving)
        self.tested += leaving

    def _remove(self, stays: Tensor, leaving: int) -> None:
        """Keep ``stays`` of the ``leaving`` oldest tokens with a verdict, and all others."""
        total, first = self.keys_store.length, self.keys_store.length - self.verdicts.length
        before, after = (torch.arange(*ends, device=stays.device) for ends in ((0, first), (first + leaving, total)))
        index = torch.cat((before, first + stays, after))[None, None]
        self.keys_store.keep(index)
        self.values_store.keep(index)

    def _view(self) -> TokenView:
        """The tokens here, all from position ``tested`` on."""
        keys, values = self.keys_store.buffer.view(), self.values_store.buffer.view()
        positions = torch.arange(self.tested, self.seen, device=keys.device).expand(keys.shape[:3])
        return TokenView(keys, values, positions, self.seen, self.scaling, Observer(Needs(), self.scaling), self.context)

    def parts(self) -> Iterator[Part]:
        if self.store is not None:
            yield from self.store.all_parts()
        yield from super().parts()
        yield from self.verdicts.parts()

    def artefacts(self) -> Iterator[Part]:
        return iter(()) if self.store is None else self.store.artefacts()


class SurrogateHeads(SelectedHeads):
    """A :class:`ThresholdLayer` for each row and KV head, scored by a surrogate of the hidden states.

    Args:
        surrogate: Its name among the artefacts. threshold, window: As the cells'.
        store: Makes the layer that stores a cell's tokens once they passed; ``None`` keeps them in the cell.
    """

    def __init__(self, context: LayerContext, surrogate: str, threshold: float, window: int, store: MakeCell | None = None) -> None:
        def cell(own: LayerContext) -> LayerCache:
            return ThresholdLayer(own, threshold, window, None if store is None else store(own))

        def select(prompt: TokenView) -> tuple[Tensor, Tensor]:
            scores = prompt.observed.surrogate(surrogate)
            return (scores >= threshold) | (prompt.positions >= prompt.seen - window), scores

        super().__init__(context, Needs(surrogate=(surrogate,)), cell, select)
        self.surrogate = surrogate
        self.scores: Tensor | None = None

    def block(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.hidden is None:
            raise ValueError("this method reads hidden states, and the model's attention module was not called with any")
        self.scores = surrogate_scores(self.hidden, self.context.artefacts, self.surrogate)
        self.watch.see(~finite(self.scores))
        try:
            return super().block(q, k, v)
        finally:
            self.scores = None

    def fill(self, rows: int) -> Iterator[tuple[Cell, LayerCache]]:
        """Every cell, told the scores of the block at hand."""
        for cell, layer in super().fill(rows):
            if isinstance(layer, ThresholdLayer) and self.scores is not None:
                layer.scores = self.scores[cell.rows, cell.keys]
            yield cell, layer

    def artefacts(self) -> Iterator[Part]:
        yield from super().artefacts()
        held = self.context.artefacts
        yield from (Part(name, held[name], held[name].nbytes) for name in part_names(self.surrogate) if name in held)
