"""The audit: does a method store fewer bytes, and does attention read those?

Labels: ``real`` (fewer bytes stored, and read), ``nothing compressed yet`` (all is stored as it is: the prompt is shorter
than what the method leaves alone), ``simulated`` (numerics real, bytes not freed), ``masked`` (tokens hidden, bytes not
freed), ``no-op`` (attention's result does not depend on what is stored); ``reference`` for the baseline. Every check keeps
its figure, so that the label can be argued with.

It proves instead of searching: see :mod:`kvbench.instruments.transplant`. What cannot be proved from outside: that a method does
not find a copy elsewhere by the counted bytes themselves, nor that it does later what it did not do on these tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor

from kvbench.caches.buffers import BLOCK
from kvbench.caches.cache import KVCache
from kvbench.caches.ledger import ByteLedger, reachable_tensors
from kvbench.instruments.canary import corrupt, shout
from kvbench.instruments.check import Check
from kvbench.instruments.identity import head_gap, identity_gap
from kvbench.instruments.out_of_memory import is_out_of_memory
from kvbench.instruments.protocol import Prompt, sound
from kvbench.instruments.session import Session
from kvbench.instruments.transplant import Snapshot
from kvbench.methods.method import Method
from kvbench.methods.registered import METHODS
from kvbench.metrics.measured import NOTHING_YET
from kvbench.spec import BASELINE

Label = Literal["reference", "real", "nothing compressed yet", "simulated", "masked", "no-op"]
PROBES = 16
"""Stored tokens, each in one KV head of one layer, tried one by one where bytes are not fewer."""
AXES = 4
"""Axes tried in turn along which a tensor with room may hold its elements in use, where its part does not say."""
FEW = 4
"""Tokens that read the corrupted cache."""
MATERIAL = 1e-3
"""Least change, as a share of the largest hidden state, by which attention depends on what was changed."""
ROUNDINGS = 64
"""Roundings of the largest hidden state within which two answers are the same."""


@dataclass(frozen=True)
class Verdict:
    """A method's label and every check behind it."""

    label: Label
    checks: dict[str, Check] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        return {name: {"passed": c.passed, "figure": c.figure, "detail": c.detail} for name, c in self.checks.items()}


class Auditor:
    """Examines methods on two prompts, one of the run and one of the same tokens in another order, which all methods share.

    Args:
        session: The run's. context: Prompt tokens. steps: Tokens that then read the cache. labels: Methods to come.
    """

    def __init__(self, session: Session, context: int, steps: int, labels: Sequence[str]) -> None:
        self.session, self.runner, self.needs = session, session.runner, session.needs(labels)
        tokens = session.prompt(1, context + steps)
        self.tokens, self.after = tokens[:, :context], tokens[:, context:]
        draw = torch.Generator().manual_seed(session.spec.seed + 1)
        self.others = self.tokens[:, torch.randperm(context, generator=draw).to(tokens.device)]
        self.streams = session.spec.protocol == "streaming"

    @cached_property
    def shared(self) -> frozenset[int]:
        """The model's modules, which no cache holds as its own."""
        return frozenset(id(module) for module in self.runner.model.modules())

    @cached_property
    def prompt(self) -> Prompt:
        return self.runner.prefill(self.tokens, self.needs)

    @cached_property
    def other_prompt(self) -> Prompt:
        return self.runner.prefill(self.others, self.needs)

    @cached_property
    def plain(self) -> Tensor:
        """Hidden states that the model's own uncompressed cache gives."""
        return self.runner.forward(self.after, self._filled(METHODS.load(BASELINE)()))

    @torch.inference_mode()
    def examine(self, label: str) -> Verdict:
        """Label one method.

        Raises:
            MethodError: its scores rank nothing, or it changed the prompt.
            FloatingPointError: hidden states are NaN or infinite.
        """
        method = self.session.methods[label]
        cache = self._filled(method)
        counted, ledger, stored = cache.ledger(), _ledger_check(cache, self.shared), Snapshot(cache, shared=self.shared)
        clean = sound(self.runner.forward(self.after, cache), cache)
        share = counted.stored / self.session.baseline_bytes(self.tokens.shape[1])
        fewer = f"stores {share:.1%} of the baseline's bytes at {self.tokens.shape[1]} tokens"
        checks = by_name(
            ledger,
            self._transplant(method, stored, clean),
            self._canary(method, clean),
            Check("fewer bytes", share < 1.0, share, fewer),
            self._slack_check(counted),
        )
        del cache
        if label == BASELINE:
            return Verdict("reference", checks | self._identity())
        return self._judge(method, checks, clean)

    def _judge(self, method: Method, checks: dict[str, Check], clean: Tensor) -> Verdict:
        """The label that the checks add up to."""
        canary = checks["canary"]
        if not canary.passed:
            return Verdict("simulated" if canary.figure is None else "no-op", checks)
        honest = all(checks[name].passed for name in ("ledger equals storages", "transplant", "little slack"))
        if checks["fewer bytes"].passed:
            return Verdict("real" if honest else "simulated", checks)
        if honest and self._answers_as_plain(clean):
            detail = f"stores all {self.tokens.shape[1]} tokens as they are, and answers as the baseline: nothing was compressed yet"
            return Verdict(NOTHING_YET, checks | by_name(replace(checks["fewer bytes"], passed=False, detail=detail)))
        read = self._probe(method, clean)
        return Verdict("simulated" if read.passed else "masked", checks | by_name(read))

    def _filled(self, method: Method, *, other: bool = False) -> KVCache:
        """The method's cache of the prompt, or of the other one."""
        if not self.streams:
            return self.runner.compress(method, self.other_prompt if other else self.prompt)
        cache = self.runner.cache(method)
        self.runner.forward(self.others if other else self.tokens, cache)
        cache.look()
        return cache

    def _transplant(self, method: Method, stored: Snapshot, clean: Tensor) -> Check:
        """What the ledger counts of the prompt, put into a cache of the other prompt: it must answer as the first did."""
        check = self._given(method, stored, clean)
        for axis in range(AXES) if stored.guessed else ():
            if check.passed:
                break
            check = self._given(method, Snapshot(self._filled(method), axis, self.shared), clean)
        return check

    def _given(self, method: Method, stored: Snapshot, clean: Tensor) -> Check:
        cache = self._filled(method, other=True)
        left: list[str] = []
        try:
            left = stored.put_into(cache)
            gap = _largest(self.runner.forward(self.after, cache) - clean)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            broke = f"a cache that was given what the ledger counts of another: {type(error).__name__}: {error}{_of(left)}"
            return Check("transplant", False, None, broke)
        detail = "largest gap of the hidden states when a cache is given what the ledger counts of another prompt's"
        return Check("transplant", gap == 0, min(gap, 1e30), detail if gap == 0 else f"{detail}: attention reads more than that{_of(left)}")

    def _slack_check(self, counted: ByteLedger) -> Check:
        """Room to grow by a block or two is every cache's; more is memory that was not freed."""
        limit = self.session.baseline_bytes(2 * BLOCK)
        detail = f"bytes of room not in use; two blocks of {BLOCK} tokens are {limit:,}"
        return Check("little slack", counted.slack <= limit, float(counted.slack), detail)

    def _disturbed(self, method: Method, disturb: Callable[[KVCache], None], tokens: Tensor) -> Tensor:
        """Final hidden states of ``tokens`` when what is stored was changed by ``disturb``."""
        cache = self._filled(method)
        disturb(cache)
        return self.runner.forward(tokens, cache)

    def _canary(self, method: Method, clean: Tensor) -> Check:
        few = min(FEW, self.after.shape[1])
        limit = MATERIAL * float(clean.abs().max())
        detail = f"largest change of the hidden states after everything counted was changed (least: {limit:.2g})"
        try:
            gap = _largest(self._disturbed(method, corrupt, self.after[:, :few]) - clean[:, :few])
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if isinstance(error, KeyError):
                return Check(
                    "canary", False, None, "what is counted is the name of something else: changed, it was looked up and not found"
                )
            return Check("canary", True, None, f"attention reads what is counted: it broke when that was changed ({type(error).__name__})")
        return Check("canary", gap > limit, min(gap, 1e30), detail)

    def _answers_as_plain(self, clean: Tensor) -> bool:
        return _largest(clean - self.plain) <= ROUNDINGS * torch.finfo(clean.dtype).eps * float(self.plain.abs().max())

    def _probe(self, method: Method, clean: Tensor) -> Check:
        """Overwrite stored tokens one at a time, in one KV head of one layer: one that changes nothing is hidden, yet takes room."""
        g, length = self.runner.geometry, self.tokens.shape[1]
        last = PROBES - 1
        spots = {(i * (g.layers - 1) // last, i % g.kv_heads, i * (length - 1) // last) for i in range(PROBES)}

        def silent(spot: tuple[int, int, int]) -> bool:
            changes = (partial(shout, spot=spot, length=length, sign=sign) for sign in (1, -1))
            return all(torch.equal(self._disturbed(method, change, self.after), clean) for change in changes)

        hidden = sum(map(silent, sorted(spots)))
        detail = f"share of {len(spots)} probed tokens that a head stores and never reads"
        return Check("stored tokens are read", not hidden, hidden / len(spots), detail)

    def _identity(self) -> dict[str, Check]:
        """The baseline against the model's own forward, attention, ``DynamicCache`` and head, in the compute dtype."""
        prompt = None if self.streams else self.prompt
        found = {"identity": identity_gap(self.runner, self.tokens, self.after, prompt), "head": head_gap(self.runner, self.tokens)}
        return by_name(*(Check(name, gap.within, gap.size, gap.detail) for name, gap in found.items()))


def by_name(*checks: Check) -> dict[str, Check]:
    """In the order in which they were made."""
    return {check.name: check for check in checks}


def _largest(gap: Tensor) -> float:
    return float(gap.abs().double().nan_to_num(nan=torch.inf).max())


def _of(left: Sequence[str]) -> str:
    """Where to look first."""
    return f"; not counted, for example {', '.join(left)}" if left else ""


def _ledger_check(cache: KVCache, shared: frozenset[int]) -> Check:
    """Modules of a layer's own are entered for what is counted alone: a method's weights are the transplant's to judge."""
    skip = {t.untyped_storage().data_ptr() for t in _given(cache)}
    parts = {part.tensor.untyped_storage().data_ptr() for layer in cache.layers for part in layer.all_parts()}
    found = {t.untyped_storage().data_ptr(): t for t in _reachable(cache, shared, modules=True)}
    plain = {t.untyped_storage().data_ptr() for t in _reachable(cache, shared)}
    held = sum(t.untyped_storage().nbytes() for at, t in found.items() if at in plain | parts and at not in skip)
    counted = cache.ledger().allocated
    detail = f"{held:,} bytes reachable from the cache, {counted:,} in the ledger"
    return Check("ledger equals storages", held == counted, float(held - counted), detail)


def _reachable(cache: KVCache, shared: frozenset[int], *, modules: bool = False) -> list[Tensor]:
    """Every tensor of the layers and what the method hung on them, the model and its rotary tables left out."""
    contexts = [layer.context for layer in cache.layers]
    return reachable_tensors(cache, [*shared, *(id(c.rope) for c in contexts if c.rope is not None)], modules=modules)


def _given(cache: KVCache) -> list[Tensor]:
    """Tensors that other caches read too: the session's, which a layer's context names, and what a layer calls artefacts."""
    named = [t for layer in cache.layers for t in layer.context.artefacts.values()]
    return [*named, *(part.tensor for layer in cache.layers for part in layer.artefacts())]


__all__ = ["Auditor", "Verdict"]
