"""Heads of different lengths: a layer of its own for each row of the batch and each KV head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from kvbench.caches.checked import checked_mask, checked_scores
from kvbench.caches.evicted import EvictedLayer
from kvbench.caches.layer import LayerCache, LayerContext, Restored, TokenView
from kvbench.caches.ledger import Part
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Cell

MakeCell = Callable[[LayerContext], LayerCache]


class RaggedLayer(LayerCache):
    """A grid of single-head layers, each of which stores, reads and counts only what its head keeps.

    Subclasses say in ``compress`` what each cell is given of the prompt (:meth:`fill`). Cells walk a block
    together, as far as all of them are stable.

    Args:
        make_cell: An empty layer for one row and one KV head, from its context.
    """

    def __init__(self, context: LayerContext, needs: Needs, make_cell: MakeCell) -> None:
        super().__init__(context, needs)
        self.make_cell = make_cell
        self.groups = context.heads // context.kv_heads
        self.cells: list[list[LayerCache]] = []

    def fill(self, rows: int) -> Iterator[tuple[Cell, LayerCache]]:
        """Every cell with its place, made now if there are none yet."""
        if not self.cells:
            contexts = [self._context(head) for head in range(self.context.kv_heads)]
            self.cells = [[self.make_cell(context) for context in contexts] for _ in range(rows)]
        for row, layers in enumerate(self.cells):
            for head, layer in enumerate(layers):
                layer.scaling, layer.seen = self.scaling, self.seen
                yield Cell.of(row, head, self.groups), layer

    def inner_layers(self) -> Iterator[LayerCache]:
        yield from super().inner_layers()
        for row in self.cells:
            yield from row

    def _context(self, head: int) -> LayerContext:
        """The layer's context as its ``head`` sees it: artefacts with an entry a KV head give it its own."""
        heads = self.context.kv_heads
        own = {name: t[head : head + 1] if t.shape[0] == heads else t for name, t in self.context.artefacts.items()}
        return replace(self.context, heads=self.groups, kv_heads=1, artefacts=own)

    def cell_view(self, prompt: TokenView, cell: Cell, index: Tensor) -> TokenView:
        """The tokens at ``index`` ``[m]`` of one cell, ``[1, 1, m, D]``, without copying the others."""
        at = (cell.rows, cell.keys)
        keys, values, positions = (t[at].index_select(2, index) for t in (prompt.keys, prompt.values, prompt.positions))
        scores = None if prompt.scores is None else prompt.scores[at].index_select(2, index)
        return replace(prompt, keys=keys, values=values, positions=positions, scores=scores, layer=self._context(cell.keys.start))

    def views(self, prompt: TokenView) -> Iterator[tuple[Cell, LayerCache, TokenView]]:
        """Every cell with its place and what it is given of the prompt."""
        raise NotImplementedError(f"{type(self).__name__} does not say which tokens its heads are given")

    def restored(self, prompt: TokenView, dtype: torch.dtype) -> Restored:
        heads, tokens = prompt.keys.shape[:2], prompt.seen
        whole = [x.new_zeros(*heads, tokens, x.shape[3], dtype=dtype) for x in (prompt.keys, prompt.values)]
        held = torch.zeros(*heads, tokens, dtype=torch.bool, device=prompt.keys.device)
        for cell, layer, view in self.views(prompt):
            own, at = layer.restored(view, dtype), (cell.rows, cell.keys)
            whole[0][at], whole[1][at], held[at] = own.keys, own.values, own.held
        return Restored(whole[0], whole[1], held)

    @property
    def length(self) -> int:
        """Tokens held by the longest head."""
        return max((layer.length for row in self.cells for layer in row), default=0)

    def held(self) -> int:
        return sum(row.held() for row in self.rows) if self.rows else sum(layer.length for row in self.cells for layer in row)

    def stable_for(self) -> int | None:
        rooms = (layer.stable_for() for _, layer in self.fill(self.batch))
        return min((room for room in rooms if room is not None), default=None)

    def block(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:3], v.shape[3])
        for cell, layer in self.fill(q.shape[0]):
            layer.hidden = None if self.hidden is None else self.hidden[cell.rows]
            fresh = (t[cell.rows, cell.keys] for t in (k, v))
            out[cell.rows, cell.queries] = layer.block(q[cell.rows, cell.queries], *fresh)
            layer.hidden = None
        self.seen += q.shape[2]
        return out

    def append(self, keys: Tensor, values: Tensor) -> None:
        raise RuntimeError("a ragged layer's cells store for themselves")

    def attend(self, q: Tensor) -> Tensor:
        raise RuntimeError("a ragged layer's cells attend for themselves")

    def parts(self) -> Iterator[Part]:
        for row in self.cells:
            for layer in row:
                yield from layer.all_parts()

    def artefacts(self) -> Iterator[Part]:
        for layer in self.cells[0] if self.cells else ():
            yield from layer.artefacts()

    def repeat(self, rows: int) -> None:
        self.cells = [deepcopy(self.cells[0]) for _ in range(rows)]
        self.batch = rows

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: rows have layers of their own.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("beam search over heads of different lengths is not supported")


class SelectedHeads(RaggedLayer):
    """Each cell takes over the prompt's tokens that ``select`` names, and then goes on by itself.

    Args:
        select: From the prompt to a mask ``[B, Hkv, T]`` of the tokens kept, and their scores.
    """

    def __init__(
        self, context: LayerContext, needs: Needs, make_cell: MakeCell, select: Callable[[TokenView], tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__(context, needs, make_cell)
        self.select = select

    def compress(self, prompt: TokenView) -> None:
        for cell, layer, view, index in self._selected(prompt):
            if layer.needs.any:
                view.observed = prompt.observed.fork(layer.needs, cell)
                view.observed.keep(index[None, None])
            layer.adopt(view)

    def views(self, prompt: TokenView) -> Iterator[tuple[Cell, LayerCache, TokenView]]:
        for cell, layer, view, _ in self._selected(prompt):
            yield cell, layer, view

    def _selected(self, prompt: TokenView) -> Iterator[tuple[Cell, LayerCache, TokenView, Tensor]]:
        """Every cell with its tokens of the prompt and their indices ``[m]``."""
        mask, scores = self.select(prompt)
        checked_mask(mask, prompt.keys), checked_scores(scores, prompt.keys, ranks=False)
        scored = replace(prompt, scores=scores)
        for cell, layer in self.fill(prompt.keys.shape[0]):
            index = mask[cell.rows, cell.keys][0, 0].nonzero()[:, 0]
            yield cell, layer, self.cell_view(scored, cell, index), index


class HeldHead(EvictedLayer):
    """A cell that takes all it is given of the prompt, and keeps that number while decoding."""

    def choose(self, prompt: TokenView) -> Tensor:
        return torch.arange(prompt.keys.shape[2], device=prompt.keys.device)[None, None]
