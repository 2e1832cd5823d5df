"""One layer's keys and values as a method stores and reads them, one token at a time or by blocks.

A method's truth is its token form: append a token, attend, settle. ``extend`` runs the same three
steps for as many tokens as the stored part stays as it is (``stable_for``); a conformance test holds
the two equal for every method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kvbench.caches.attend import causal
from kvbench.caches.checked import Watch
from kvbench.caches.layer_context import LayerContext
from kvbench.caches.ledger import ByteLedger, Part, ledger_of
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Observer
from kvbench.caches.open_prompt import OpenPrompt, announced, refused
from kvbench.caches.padded import is_padded, row_by_row, skipped
from kvbench.caches.restored import Restored
from kvbench.caches.storing import StoringLayer
from kvbench.caches.tagged import TaggedLayer, named_layer
from kvbench.caches.views import TokenView, prompt_view
from kvbench.errors import MethodError, UsageError

__all__ = ["LayerCache", "LayerContext", "Restored", "TaggedLayer", "TokenView", "named_layer", "prompt_view"]


class LayerCache(StoringLayer):
    """Base of all layers. Subclasses say what is stored; everything about order and time is here.

    Args:
        context: Where the layer stands.
        needs: Query statistics wanted at ``compress`` (and, in streaming, at every settling).
    """

    def __init__(self, context: LayerContext, needs: Needs = Needs()) -> None:  # noqa: B008 (frozen)
        super().__init__(context)
        self.needs, self.batch = needs, 1
        self.observer: Observer | None = None
        self.hidden: Tensor | None = None
        """What the attention module was given for the tokens at hand, ``[B, n, hidden]``; only while they pass, and if ``needs`` ask."""
        self.open: OpenPrompt | None = None
        """A prompt of which more is to come."""
        self.make: Callable[[], LayerCache] | None = None
        """Makes an empty layer like this one; set by the cache, used for rows of different lengths."""
        self.rows: list[LayerCache] = []
        self.watch = Watch()
        """What was seen of scores while decoding, where a device may not be waited for."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scaling: float, padding: Tensor | None = None) -> Tensor:
        """Attention of a forward's fresh tokens, storing them on the way.

        Args:
            q: ``[B, Hq, n, D]``; k, v: ``[B, Hkv, n, D]``, RoPE applied.
            scaling: Softmax scale.
            padding: ``[B, n]``, False at left padding; looked at in a layer's first forward only.

        Returns:
            ``[B, Hq, n, D]``.
        """
        self.scaling = scaling
        try:
            out = self._forward(q, k, v, scaling, padding)
        finally:
            self.hidden = None
        if out.shape[:3] != q.shape[:3]:
            given, asked = list(out.shape), list(q.shape)
            raise MethodError(f"attention gave {given} for queries {asked}", hint="attend returns [rows, query heads, m, D]")
        return out

    def inner_layers(self) -> Iterator[LayerCache]:
        """Layers that this one is made of."""
        return iter(self.rows)

    def join_rows(self) -> None:
        """Tie the rows of a padded batch to other layers, where a method couples layers. Nothing by default."""

    def look(self) -> None:
        """Wait for the device, and say whether all scores since the prompt did rank.

        Raises:
            MethodError: some did not.
        """
        self.watch.look()
        for layer in self.inner_layers():
            layer.look()

    def _forward(self, q: Tensor, k: Tensor, v: Tensor, scaling: float, padding: Tensor | None) -> Tensor:
        if self.rows or (self.seen == 0 and is_padded(padding)):
            return self._forward_rows(q, k, v, scaling, padding)
        if self.context.protocol == "prefill" and (self.seen == 0 or self.open is not None):
            return self._read_prompt(q, k, v)
        if q.shape[2] > 1 and self.context.later == "refuse" and not self.goes_on:
            raise refused(q.shape[2])
        return self.extend(q, k, v)

    def _read_prompt(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A prompt's own attention; it is compressed when all of it has come."""
        if self.open is None and not self.goes_on:
            tokens = announced(self.context)
            if tokens is not None and tokens != q.shape[2]:
                self.open = OpenPrompt(tokens, self._new_observer(), k.dtype)
        if self.open is None:
            out = causal(q, k, v, self.scaling)
            self.adopt(self.view_of(q, k, v))
            return out
        out = self.open.add(q, k, v, self.scaling, self.hidden)
        self.seen, self.batch = self.seen + q.shape[2], q.shape[0]
        if self.open.complete:
            prompt, self.open = self.open, None
            self.adopt(prompt_view(prompt.keys.view(), prompt.values.view(), self.scaling, prompt.observer, self.context))
        return out

    def _forward_rows(self, q: Tensor, k: Tensor, v: Tensor, scaling: float, padding: Tensor | None) -> Tensor:
        skips = [0] * q.shape[0] if self.rows else self._open_rows(q, padding)
        out = row_by_row(self.rows, skips, q, k, v, scaling, self.hidden)
        self.seen += q.shape[2]
        return out

    def _open_rows(self, q: Tensor, padding: Tensor | None) -> list[int]:
        """Make a layer for each row; how many tokens of each are padding."""
        if padding is None or self.make is None:
            raise ValueError("a left-padded batch needs a cache from kvbench.make_cache and its attention mask")
        if self.context.prompt_tokens or announced(self.context) not in (None, q.shape[2]):
            raise UsageError("a left-padded batch cannot come in pieces", hint="leave prefill_chunk_size and prompt_tokens out")
        self.rows = [self.make() for _ in range(q.shape[0])]
        self.join_rows()
        return skipped(padding)

    def view_of(self, q: Tensor, k: Tensor, v: Tensor) -> TokenView:
        """A prompt as ``compress`` is given it."""
        observer = self._new_observer()
        observer.follow(q, k, 0, self.hidden)
        return prompt_view(k, v, self.scaling, observer, self.context)

    def _new_observer(self, dtype: torch.dtype | None = None) -> Observer:
        """``dtype`` is that of window queries which the layer stores."""
        return Observer(self.needs, self.scaling, self.context.rope, self.context.artefacts, dtype)

    def adopt(self, prompt: TokenView) -> None:
        """Compress a prompt that was prefilled here or for many methods at once."""
        self.scaling = prompt.scaling
        self.compress(prompt)
        self.seen, self.batch = prompt.seen, prompt.keys.shape[0]

    def extend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Fresh tokens through the cache, block by block; exactly what one at a time would give."""
        if self.observer is None and self.context.protocol == "streaming" and self.needs.any:
            self.observer = self._new_observer(self.context.dtype)
        self.batch = q.shape[0]
        total, done, outs, hidden = q.shape[2], 0, [], self.hidden
        while done < total:
            left = total - done
            n = min(left, self.stable_for() or left)
            block = slice(done, done + n)
            self.hidden = None if hidden is None else hidden[:, block]
            outs.append(self.block(q[:, :, block], k[:, :, block], v[:, :, block]))
            done += n
        return outs[0] if len(outs) == 1 else torch.cat(outs, 2)

    def block(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One block of fresh tokens, no longer than ``stable_for``: store, attend, observe, settle."""
        self.append(k, v)
        out = self.attend(q)
        if self.observer is not None:
            keys = self.observed_keys(q.dtype) if self.needs.attention else k
            self.observer.follow(q, keys, self.seen, self.hidden)
        self.seen += q.shape[2]
        self.settle()
        return out

    def observed_keys(self, dtype: torch.dtype) -> Tensor:
        """Keys ``[B, Hkv, T, D]`` over which a streaming observer follows attention."""
        raise NotImplementedError(f"{type(self).__name__} follows no attention while streaming")

    # What is held, and by which rows ------------------------------------------------------------

    def held(self) -> int:
        """Keys held now, over rows and KV heads that hold them apart."""
        if self.open is not None:
            return self.seen * self.context.kv_heads * self.batch
        return sum(row.held() for row in self.rows) if self.rows else self.length * self.context.kv_heads * self.batch

    def all_parts(self) -> Iterator[Part]:
        """What is stored and what is followed, for all rows."""
        for row in self.rows:
            yield from row.all_parts()
        yield from self.parts() if self.open is None else self.open.parts()
        if self.observer is not None:
            yield from self.observer.parts()

    def ledger(self) -> ByteLedger:
        """Itemised bytes; stored + slack equals the storages this layer holds."""
        return ledger_of(self.all_parts(), self.artefacts())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows of the batch (beam search)."""
        if self.rows:
            raise RuntimeError("beam search over a left-padded batch is not supported; use prompts of equal length")
        for store in self.stores():
            store.reorder(beam_idx)
        if self.observer is not None:
            self.observer.reorder(beam_idx)

    def repeat(self, rows: int) -> None:
        """Make ``rows`` rows of the one that is held: as many continuations of one prompt."""
        self.reorder_cache(torch.zeros(rows, dtype=torch.long))
        self.batch = rows
