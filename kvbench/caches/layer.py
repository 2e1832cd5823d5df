"""One layer's keys and values as a method stores and reads them, one token at a time or by blocks.

A method's truth is its token form: append a token, attend, settle. ``extend`` runs the same three
steps for as many tokens as the stored part stays as it is (``stable_for``); a conformance test holds
the two equal for every method.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kvbench.caches.attend import causal
from kvbench.caches.buffers import scatter_tokens
from kvbench.caches.checked import Watch
from kvbench.caches.compat import prompt_in_pieces
from kvbench.caches.ledger import ByteLedger, Part, ledger_of
from kvbench.caches.needs import Needs
from kvbench.caches.observe import Observer
from kvbench.caches.prompts import OpenPrompt, refused
from kvbench.caches.stores import Store
from kvbench.caches.tagged import TaggedLayer, named_layer
from kvbench.caches.views import LayerContext, Restored, TokenView, prompt_view
from kvbench.errors import MethodError, UsageError

__all__ = ["LayerCache", "LayerContext", "Restored", "TaggedLayer", "TokenView", "named_layer", "prompt_view"]


class LayerCache(TaggedLayer):
    """Base of all layers. Subclasses say what is stored; everything about order and time is here.

    Args:
        context: Where the layer stands.
        needs: Query statistics wanted at ``compress`` (and, in streaming, at every settling).
    """

    def __init__(self, context: LayerContext, needs: Needs = Needs()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.is_initialized = True
        self.context, self.needs = context, needs
        self.seen, self.batch = 0, 1
        self.scaling = context.head_dim**-0.5
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

    # What a method defines -----------------------------------------------------------------

    @abstractmethod
    def compress(self, prompt: TokenView) -> None:
        """Take over a prompt whose own attention is done. The view's tensors are shared: copy what is kept."""

    @abstractmethod
    def append(self, keys: Tensor, values: Tensor) -> None:
        """Store fresh tokens ``[B, Hkv, n, D]`` as the method stores them."""

    @abstractmethod
    def attend(self, q: Tensor) -> Tensor:
        """``[B, Hq, m, D]`` over what is stored; the last m stored tokens are the queries' own."""

    def join_rows(self) -> None:
        """Tie the rows of a padded batch to other layers, where a method couples layers. Nothing by default."""

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, Hkv, length, D]`` as attention reads them."""
        raise NotImplementedError(f"{type(self).__name__} does not read its tokens apart from attending to them")

    def places(self, prompt: TokenView) -> Tensor:
        """Positions ``[B, Hkv, length]`` of the prompt's tokens that ``compress`` keeps, in the order in which ``read`` gives them.

        Worked out from the prompt again where a method chooses; nothing is stored for it. By default every token, in order.
        """
        return prompt.positions

    def restored(self, prompt: TokenView, dtype: torch.dtype) -> Restored:
        """What attention reads of a ``prompt`` that was just compressed, token by token.

        Raises:
            NotImplementedError: what is read is not the tokens at ``places``.
        """
        keys, values = (x.to(prompt.keys.device) for x in self.read(dtype))
        places = self.places(prompt)
        if places.shape != keys.shape[:3]:
            raise NotImplementedError(f"{type(self).__name__} does not say which tokens it reads")
        held = torch.zeros(*keys.shape[:2], prompt.seen, dtype=torch.bool, device=keys.device).scatter(2, places, True)
        return Restored(scatter_tokens(keys, places, prompt.seen), scatter_tokens(values, places, prompt.seen), held)

    def settle(self) -> None:
        """Between two blocks: flush a full residual, evict down to the budget. Nothing by default."""

    def stable_for(self) -> int | None:
        """Tokens that may come before the stored part next changes; ``None`` is for ever."""
        return None

    def parts(self) -> Iterator[Part]:
        """Every tensor this layer stores."""
        for store in self.stores():
            yield from store.parts()

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens held now, in each KV head."""

    @property
    def goes_on(self) -> bool:
        """Whether later tokens of a prompt find all before them as they came, so that pieces give what the whole gives."""
        return False

    def held(self) -> int:
        """Keys held now, over rows and KV heads that hold them apart."""
        if self.open is not None:
            return self.seen * self.context.kv_heads * self.batch
        return sum(row.held() for row in self.rows) if self.rows else self.length * self.context.kv_heads * self.batch

    def artefacts(self) -> Iterator[Part]:
        """Weights-side tensors this layer reads."""
        return iter(())

    # The walk -----------------------------------------------------------------------------

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

    def look(self) -> None:
        """Wait for the device, and say whether all scores since the prompt did rank.

        Raises:
            MethodError: some did not.
        """
        self.watch.look()
        for layer in self.inner_layers():
            layer.look()

    def _forward(self, q: Tensor, k: Tensor, v: Tensor, scaling: float, padding: Tensor | None) -> Tensor:
        if self.rows or (self.seen == 0 and padding is not None and not bool(padding.all())):
            return self._forward_rows(q, k, v, scaling, padding)
        if self.context.protocol == "prefill" and (self.seen == 0 or self.open is not None):
            return self._read_prompt(q, k, v)
        if q.shape[2] > 1 and self.context.later == "refuse" and not self.goes_on:
            raise refused(q.shape[2])
        return self.extend(q, k, v)

    def _read_prompt(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A prompt's own attention; it is compressed when all of it has come."""
        if self.open is None and not self.goes_on:
            tokens = self.context.prompt_tokens or (prompt_in_pieces() if self.context.later == "refuse" else None)
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
        """A left-padded batch: each row has a layer of its own, so it gives just what it gives alone."""
        out = torch.zeros_like(q)
        skips = [0] * q.shape[0]
        if not self.rows:
            if padding is None or self.make is None:
                raise ValueError("a left-padded batch needs a cache from kvbench.make_cache and its attention mask")
            if self.context.prompt_tokens or (self.context.later == "refuse" and prompt_in_pieces() not in (None, q.shape[2])):
                raise UsageError("a left-padded batch cannot come in pieces", hint="leave prefill_chunk_size and prompt_tokens out")
            self.rows = [self.make() for _ in skips]
            self.join_rows()
            skips = (padding.shape[1] - padding.sum(1)).tolist()
        for row, (layer, skip) in enumerate(zip(self.rows, skips, strict=True)):
            own = slice(row, row + 1)
            layer.hidden = None if self.hidden is None else self.hidden[own, skip:]
            out[own, :, skip:] = layer.forward(q[own, :, skip:], k[own, :, skip:], v[own, :, skip:], scaling)
        self.seen += q.shape[2]
        return out

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

    # The byte ledger ----------------------------------------------------------------------

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

    # The transformers protocol -------------------------------------------------------------

    def reset(self) -> None:
        """Refused: what was compressed away cannot be had back.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a compressed cache cannot be reset; make a new one with kvbench.make_cache")

    def crop(self, *_: Any) -> None:
        """Refused, as ``reset`` is: assisted decoding would need tokens that are gone.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a compressed cache cannot be cropped")

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

    def stores(self) -> Iterator[Store]:
        """The stores this layer is made of; ``parts`` and ``reorder_cache`` are read off them."""
        return iter(())
