"""The audit: does a method store fewer bytes, and does attention read those?

Labels: ``real`` (fewer bytes stored, and read), ``simulated`` (numerics real, bytes not freed), ``masked``
(tokens hidden, bytes not freed), ``no-op`` (attention's result does not depend on what is stored);
``reference`` for the baseline. Every check keeps its figure, so that the label can be argued with.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from kvbench.caches.buffers import BLOCK
from kvbench.caches.cache import CacheOptions, KVCache, use_kvbench_attention
from kvbench.caches.ledger import ByteLedger, reachable_tensors
from kvbench.engine.protocol import Runner
from kvbench.engine.session import Session
from kvbench.evaluators.base import BASELINE
from kvbench.methods.base import Method

Label = Literal["reference", "real", "simulated", "masked", "no-op"]
PROBES = 16
"""Stored tokens, each in one KV head of one layer, tried one by one where bytes are not fewer."""
LOUD = 1e4
"""What a probed token is overwritten with: with this sign or the other, any attention to it shows."""


@dataclass(frozen=True)
class Check:
    """One finding: whether it passed, its figure, and what the figure is."""

    passed: bool
    figure: float | None
    detail: str


@dataclass(frozen=True)
class Verdict:
    """A method's label and every check behind it."""

    label: Label
    checks: dict[str, Check] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        return {name: {"passed": c.passed, "figure": c.figure, "detail": c.detail} for name, c in self.checks.items()}


class Auditor:
    """Examines methods on one prompt of the run.

    Args:
        session: The run's. context: Prompt tokens. steps: Tokens that then read the cache. labels: Methods to come.
    """

    def __init__(self, session: Session, context: int, steps: int, labels: Sequence[str]) -> None:
        self.session, self.runner = session, session.runner
        tokens = session.prompt(1, context + steps)
        self.tokens, self.after = tokens[:, :context], tokens[:, context:]
        streaming = session.spec.protocol == "streaming"
        self.prompt = None if streaming else self.runner.prefill(self.tokens, session.needs(labels))

    @torch.inference_mode()
    def examine(self, label: str) -> Verdict:
        """Label one method."""
        method = self.session.methods[label]
        known = _tensors_alive()
        cache = self._filled(method)
        counted = cache.ledger()
        ledger = _ledger_check(cache)
        clean = self.runner.forward(self.after, cache)
        copies = _copies_check(cache, [*known, clean], self._key_bytes())
        del known
        canary = self._canary(method, clean)
        share = counted.stored / self.session.baseline_bytes(self.tokens.shape[1])
        fewer = Check(share < 1.0, share, f"stores {share:.1%} of the baseline's bytes at {self.tokens.shape[1]} tokens")
        checks = {
            "ledger equals storages": ledger,
            "no copy survives": copies,
            "canary": canary,
            "fewer bytes": fewer,
            "little slack": self._slack_check(counted),
        }
        if label == BASELINE:
            checks |= self._identity(method)
            return Verdict("reference", checks)
        return self._judge(method, checks, clean)

    def _judge(self, method: Method, checks: dict[str, Check], clean: Tensor) -> Verdict:
        if not checks["canary"].passed:
            return Verdict("no-op", checks)
        if all(checks[name].passed for name in ("ledger equals storages", "no copy survives", "fewer bytes", "little slack")):
            return Verdict("real", checks)
        if checks["fewer bytes"].passed:
            return Verdict("simulated", checks)
        checks["stored tokens are read"] = self._probe(method, clean)
        return Verdict("simulated" if checks["stored tokens are read"].passed else "masked", checks)

    def _filled(self, method: Method) -> KVCache:
        if self.prompt is not None:
            return self.runner.compress(method, self.prompt)
        cache = self.runner.cache(method)
        self.runner.forward(self.tokens, cache)
        return cache

    def _key_bytes(self) -> int:
        """Bytes of one layer's prompt keys in the smaller of the formats at hand."""
        g = self.runner.geometry
        return g.kv_heads * g.head_dim * self.tokens.shape[1] * min(self.session.loaded.cache_dtype.itemsize, g.dtype.itemsize)

    def _slack_check(self, counted: ByteLedger) -> Check:
        """Room to grow by a block or two is every cache's; more is memory that was not freed."""
        limit = self.session.baseline_bytes(2 * BLOCK)
        return Check(counted.slack <= limit, float(counted.slack), f"bytes of room not in use; two blocks of {BLOCK} tokens are {limit:,}")

    def _disturbed(self, method: Method, disturb: Callable[[KVCache], None], clean: Tensor) -> float:
        """Largest change of the final hidden states when what is stored was changed by ``disturb``."""
        cache = self._filled(method)
        disturb(cache)
        gap = (self.runner.forward(self.after, cache) - clean).abs().double()
        return float(gap.nan_to_num(nan=torch.inf).max())

    def _canary(self, method: Method, clean: Tensor) -> Check:
        gap = self._disturbed(method, _corrupt, clean)
        return Check(gap > 0, min(gap, 1e30), "largest change of the hidden states after everything stored was corrupted")

    def _probe(self, method: Method, clean: Tensor) -> Check:
        """Corrupt stored tokens one at a time, in one KV head of one layer: one that changes nothing is hidden, yet takes room."""
        g, length = self.runner.geometry, self.tokens.shape[1]
        last = PROBES - 1
        spots = {(i * (g.layers - 1) // last, i % g.kv_heads, i * (length - 1) // last) for i in range(PROBES)}

        def silent(spot: tuple[int, int, int]) -> bool:
            changes = (partial(_corrupt_token, spot=spot, length=length, to=to) for to in (LOUD, -LOUD))
            return all(self._disturbed(method, change, clean) == 0 for change in changes)

        hidden = sum(map(silent, sorted(spots)))
        return Check(not hidden, hidden / len(spots), f"share of {len(spots)} probed tokens that a head stores and never reads")

    def _identity(self, method: Method) -> dict[str, Check]:
        """The baseline against the model's own attention and ``DynamicCache``, both in the compute dtype."""
        exact = Runner(self.runner.model, self.runner.geometry, {}, CacheOptions(None))
        ours = exact.logits(exact.forward(self.after, exact.compress(method, exact.prefill(self.tokens, method.needs))))
        own = _own_logits(exact, self.tokens, self.after)
        gap, size = float((ours - own).abs().max()), float(own.abs().max())
        limit = 64 * torch.finfo(own.dtype).eps * size
        detail = f"largest logit gap to the model's own DynamicCache (limit {limit:.2g}, 64 roundings)"
        return {"identity": Check(gap <= limit, gap, detail)}


def _own_logits(runner: Runner, tokens: Tensor, after: Tensor) -> Tensor:
    from transformers import DynamicCache

    model = runner.model
    model.set_attn_implementation("sdpa")
    try:
        cache = DynamicCache(config=model.config)
        runner.forward(tokens, cache)
        return runner.logits(runner.forward(after, cache))
    finally:
        use_kvbench_attention(model)


def _ledger_check(cache: KVCache) -> Check:
    skip = {t.untyped_storage().data_ptr() for t in _given(cache)}
    held = sum(t.untyped_storage().nbytes() for t in _reachable(cache) if t.untyped_storage().data_ptr() not in skip)
    counted = cache.ledger().allocated
    return Check(held == counted, float(held - counted), f"{held:,} bytes reachable from the cache, {counted:,} in the ledger")


def _reachable(cache: KVCache) -> list[Tensor]:
    """Every tensor of the layers and what the method hung on them, the model and its rotary tables left out."""
    contexts = [layer.context for layer in cache.layers]
    return reachable_tensors(cache, stop=[id(c.rope) for c in contexts if c.rope is not None])


def _given(cache: KVCache) -> list[Tensor]:
    """Tensors that other caches read too: the session's, which a layer's context names, and what a layer calls artefacts."""
    named = [t for layer in cache.layers for t in layer.context.artefacts.values()]
    return [*named, *(part.tensor for layer in cache.layers for part in layer.artefacts())]


def _tensors_alive() -> list[Tensor]:
    """Every tensor in the process. Holding the list keeps their addresses from being reused."""
    return [o for o in gc.get_objects() if issubclass(type(o), Tensor)]  # isinstance would wake lazy proxies


def _copies_check(cache: KVCache, known: Sequence[Tensor], size: int) -> Check:
    """Tensors the size of a layer's keys that came with this cache and are not part of it."""
    mine = {t.untyped_storage().data_ptr() for t in [*_reachable(cache), *known]}
    strangers: dict[int, int] = {}
    for tensor in _tensors_alive():
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine and storage.nbytes() >= size and tensor.dtype != torch.bool:
            strangers[storage.data_ptr()] = storage.nbytes()
    total = sum(strangers.values())
    return Check(not strangers, float(total), f"{len(strangers)} tensors of key size outside the cache, {total:,} bytes")


def _corrupt(cache: KVCache) -> None:
    """Overwrite all numbers and codes; lengths and positions (wider integers) stay, so that shapes hold."""
    given = {t.untyped_storage().data_ptr() for t in _given(cache)}
    for tensor in _reachable(cache):
        if tensor.untyped_storage().data_ptr() in given:
            continue
        if tensor.dtype == torch.uint8:
            tensor.bitwise_xor_(0xA5)
        elif tensor.is_floating_point():
            tensor.neg_().add_(1.0)


def _corrupt_token(cache: KVCache, spot: tuple[int, int, int], length: int, to: float) -> None:
    """Overwrite what one layer stores of one token for one KV head, (layer, head, token) = ``spot``."""
    layer, head, place = spot
    rope = cache.layers[layer].context.rope
    for tensor in reachable_tensors(cache.layers[layer], stop=[] if rope is None else [id(rope)]):
        if tensor.ndim == 4 and tensor.shape[2] >= length and tensor.is_floating_point():
            tensor[:, head % tensor.shape[1], place] = to


__all__ = ["Auditor", "Check", "Verdict"]
