"""The conformance suite: on tiny float64 models, every path through a method's cache gives the same numbers.

``kvbench verify METHOD`` runs it on any method, plug-ins too, and so do the tests on all built-in ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kvbench.caches.cache import Artefacts, CacheOptions, Geometry, KVCache, decoder_of, use_kvbench_attention
from kvbench.caches.checked import checked_index
from kvbench.caches.evicted import EvictedLayer
from kvbench.caches.ledger import storage_bytes
from kvbench.calibration import provide
from kvbench.errors import UsageError, told
from kvbench.instruments.check import Check
from kvbench.instruments.context import Stage
from kvbench.instruments.protocol import Runner
from kvbench.instruments.tiny import make_tiny_model
from kvbench.methods.method import Method
from kvbench.methods.registered import refuse
from kvbench.models.shape import shape_of
from kvbench.models.weights import silent

TINY = (1, 3, 5)
"""Prompts shorter than any window, residual or number of sinks, in tokens."""
LIMIT = 1e-10
"""Largest difference of final hidden states, float64."""


@dataclass(frozen=True)
class Sizes:
    """Tokens of prompt and continuation, large enough to fill windows and residuals, uneven on purpose; layers of the model."""

    context: int = 150
    continuation: int = 141
    layers: int = 4


def conformance(method: Method, family: str, sizes: Sizes, stage: Stage = silent) -> list[Check]:
    """All paths of one method on one tiny model; a path that breaks is a check that failed.

    Raises:
        UsageError: the method's parameters do not fit a head of 16.
    """
    bench = Bench(method, family, sizes)
    title = f"conformance of {method.label} on a tiny {family} model"
    checks = bench.checks()
    found = []
    for done, (name, check) in enumerate(checks.items()):
        stage(title, done, len(checks))
        found.append(_tried(f"{name} ({family})", check))
    stage(title, len(checks), len(checks))
    return found


def _tried(name: str, check: Callable[[], Check]) -> Check:
    """What ``check`` finds, or that it could not be made: a method may break anywhere."""
    try:
        return check()
    except UsageError:
        raise
    except Exception as error:
        return Check(name, False, type(error).__name__, told(error))


class Bench:
    """One method on one tiny model, and what is compared there."""

    def __init__(self, method: Method, family: str, sizes: Sizes) -> None:
        self.method, self.family, self.sizes = method, family, sizes
        self.model = make_tiny_model(family, num_hidden_layers=sizes.layers)
        try:
            method.check(shape_of(self.model.config.to_dict()))
        except ValueError as error:
            raise refuse(method.label, error) from error
        use_kvbench_attention(self.model)
        self.geometry = Geometry.of(self.model)
        self.artefacts = _artefacts(method, self.model, self.geometry)
        draw = torch.Generator().manual_seed(7)
        self.tokens = torch.randint(3, 128, (2, sizes.context + sizes.continuation), generator=draw)

    def checks(self) -> dict[str, Callable[[], Check]]:
        """What is compared, by name, in order."""
        ways: list[tuple[str, int]] = [("prefill", 1), ("streaming", 1), ("streaming", 7)]
        blocks = {_walk(p, chunk): partial(self.blocks, p, chunk) for p, chunk in ways if p in self.method.protocols}
        return {
            **blocks,
            "row of a batch = row alone": self.batch_row,
            "left-padded row = row alone": self.padded_row,
            "together = each alone": self.together,
            "model.generate = scored path": self.generates,
            "block = token by token, tiny prompts": self.tiny,
            "kept tokens are tokens": self.kept,
            "ledger = storages": self.ledger,
        }

    def runner(self, **options: Any) -> Runner:
        return Runner(self.model, self.geometry, self.artefacts, CacheOptions(None, context=self.sizes.context, **options))

    def check(self, name: str, a: Tensor, b: Tensor, detail: str) -> Check:
        gap = float((a - b).abs().nan_to_num(nan=torch.inf).max())
        return Check(f"{name} ({self.family})", gap <= LIMIT, gap, detail, LIMIT)

    def scored(self, runner: Runner, tokens: Tensor, *, stepwise: bool = False, ragged: bool = False) -> tuple[Tensor, KVCache]:
        """Hidden states that predict the continuation, and the cache that gave them."""
        split, total = self.sizes.context, tokens.shape[1]
        if runner.options.protocol == "streaming":
            cache = runner.cache(self.method)
            return runner.streaming(cache, tokens, total - split, stepwise=stepwise), cache
        prompt = runner.prefill(tokens[:, :split], self.method.needs)
        cache = runner.compress(self.method, prompt)
        if not ragged:
            return runner.continuation(prompt, cache, tokens[:, split:], stepwise=stepwise), cache
        cuts = [split, split + 1, split + 6, split + (total - split) // 2, total - 1]
        parts = [runner.forward(tokens[:, a:b], cache) for a, b in pairwise(cuts)]
        return torch.cat((prompt.last_hidden[:, None], *parts), 1), cache

    def blocks(self, protocol: Any, chunk: int) -> Check:
        runner = self.runner(protocol=protocol, chunk_size=chunk)
        by_token, _ = self.scored(runner, self.tokens, stepwise=True)
        by_block, _ = self.scored(runner, self.tokens)
        name = _walk(protocol, chunk)
        whole = self.check(name, by_block, by_token, "largest difference of final hidden states")
        if protocol == "streaming":
            return whole
        ragged = self.check(name, self.scored(runner, self.tokens, ragged=True)[0], by_token, whole.detail + ", ragged forwards too")
        return whole if not whole.passed else replace(ragged, figure=max(whole.figure, ragged.figure))  # type: ignore[type-var]

    def batch_row(self) -> Check:
        runner = self.runner()
        both, _ = self.scored(runner, self.tokens)
        alone, _ = self.scored(runner, self.tokens[1:])
        return self.check("row of a batch = row alone", both[1:], alone, "second of two rows")

    def padded_row(self) -> Check:
        """A left-padded row against itself without padding, through the model's ordinary call."""
        pad, split = 5, self.sizes.context
        tokens = self.tokens.clone()
        tokens[1, :pad] = 0
        mask = torch.ones_like(tokens)
        mask[1, :pad] = 0
        padded = self._by_mask(tokens, mask, split)[1, pad:]
        alone = self._by_mask(tokens[1:, pad:], mask[1:, pad:], split - pad)[0]
        return self.check("left-padded row = row alone", padded, alone, "prompt and continuation, logits")

    def together(self) -> Check:
        """Three continuations of one prompt and one of a shorter one, in one forward, against each alone."""
        runner, split = self.runner(), self.sizes.context
        each = min(20, self.sizes.continuation // 2)
        fresh = self.tokens[:, split : split + 2 * each].reshape(4, each)
        prompts = [runner.prefill(tokens, self.method.needs) for tokens in (self.tokens[:1, :split], self.tokens[1:, 5:split])]
        caches = [runner.compress(self.method, prompt) for prompt in prompts]
        caches[0].repeat(3)
        joint = torch.cat([runner.together(part, caches, [3, 1]) for part in torch.split(fresh, each // 2 + 1, 1)], 1)
        alone = [runner.stepwise(fresh[row : row + 1], runner.compress(self.method, prompts[row == 3])) for row in range(4)]
        return self.check("together = each alone", joint, torch.cat(alone), "rows of one forward, two caches")

    @torch.inference_mode()
    def _by_mask(self, tokens: Tensor, mask: Tensor, split: int) -> Tensor:
        cache = self.runner().cache(self.method)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        outs = []
        for part in (slice(0, split), slice(split, tokens.shape[1])):
            out = self.model(tokens[:, part], attention_mask=mask[:, : part.stop], position_ids=positions[:, part], past_key_values=cache)
            outs.append(out.logits)
        return torch.cat(outs, 1)

    @torch.inference_mode()
    def generates(self) -> Check:
        """``model.generate`` with the cache, then the same tokens through the scored path.

        Final hidden states are taken as they leave the decoder: ``generate`` itself rounds logits to float32.
        """
        runner, new, split = self.runner(), min(24, self.sizes.continuation // 2), self.sizes.context
        prompt, states = self.tokens[:, :split], []
        hook = decoder_of(self.model).register_forward_hook(lambda _m, _i, out: states.append(out.last_hidden_state[:, -1:]))
        try:
            tokens = self.model.generate(
                prompt, attention_mask=torch.ones_like(prompt), past_key_values=runner.cache(self.method),
                max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0,
            )  # fmt: skip
        finally:
            hook.remove()
        hidden, _ = self.scored(runner, tokens)
        return self.check("model.generate = scored path", hidden, torch.cat(states, 1), f"hidden states of {new} greedy tokens")

    def tiny(self) -> Check:
        """A few tokens after prompts of hardly any."""
        runner, name, worst = self.runner(), f"block = token by token, tiny prompts ({self.family})", 0.0
        for split in TINY:
            fresh = self.tokens[:, split : split + 5]
            try:
                prompt = runner.prefill(self.tokens[:, :split], self.method.needs)
                by = [runner.continuation(prompt, runner.compress(self.method, prompt), fresh, stepwise=way) for way in (False, True)]
            except Exception as error:
                return Check(name, False, f"{split} tokens: {type(error).__name__}", str(error) or "no message", LIMIT)
            worst = max(worst, float((by[0] - by[1]).abs().nan_to_num(nan=torch.inf).max()))
        return Check(name, worst <= LIMIT, worst, f"prompts of {', '.join(map(str, TINY))} tokens", LIMIT)

    @torch.inference_mode()
    def kept(self) -> Check:
        """Where layers say which of the prompt's tokens they keep: each there, and in each head once; and so while decoding."""
        runner = self.runner()
        prompt = runner.prefill(self.tokens[:, : self.sizes.context], self.method.needs)
        cache = runner.compress(self.method, prompt)
        said = 0
        for layer, view in zip(cache.layers, prompt.views, strict=True):
            try:
                places = layer.places(view)
            except NotImplementedError:
                continue
            said += 1
            checked_index(places, prompt.views[0].seen)
        runner.forward(self.tokens[:, self.sizes.context :], cache)
        for layer in cache.layers:
            if isinstance(layer, EvictedLayer) and layer.positions is not None:
                checked_index(layer.positions.view()[..., 0], layer.seen)
        return Check(f"kept tokens are tokens ({self.family})", True, None, f"{said} of {len(cache.layers)} layers say which they keep")

    def ledger(self) -> Check:
        _, cache = self.scored(self.runner(), self.tokens)
        parts = [part.tensor for layer in cache.layers for part in layer.all_parts()]
        held, counted = storage_bytes(parts), cache.ledger().allocated
        return Check(f"ledger = storages ({self.family})", held == counted, float(held - counted), f"{counted:,} bytes counted", 0.0)


def _walk(protocol: str, chunk: int) -> str:
    return f"block = token by token, {protocol}" + (f" chunk {chunk}" if protocol == "streaming" else "")


def _artefacts(method: Method, model: Any, geometry: Geometry) -> Artefacts:
    tokens = torch.randint(128, (512,), generator=torch.Generator().manual_seed(1))
    return provide(method.artefacts, model, geometry, tokens, weights_hash=None, folder=None, stage=silent)
