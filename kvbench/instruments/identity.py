"""The baseline through kvbench's path against the model's own forward: attention and cache, and the head apart from them.

The head is compared by itself, on the model's own hidden states: there the two ways differ by nothing but a product's
roundings, in any format, so that a scale of 1.01 or a cap that bends the largest logit shows, where a 16-bit model's two ways
through its layers lie further apart than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvbench.caches.cache import CacheOptions, decoder_of, use_kvbench_attention
from kvbench.instruments.protocol import Prompt, Runner
from kvbench.methods.registered import METHODS

ROUNDINGS = 64
"""Of the largest logit, allowed between the two ways through all layers."""
OWN = 8
"""Or so many times what the model's own logits differ when the same tokens go through it in two forwards instead of one."""
HEAD = 4
"""Roundings of the largest logit allowed to the head alone."""


@dataclass(frozen=True)
class Gap:
    """How far two sets of logits lie apart, and whether that is rounding."""

    within: bool
    size: float
    detail: str


@torch.inference_mode()
def identity_gap(runner: Runner, tokens: Tensor, after: Tensor, prompt: Prompt | None = None) -> Gap:
    """The baseline's logits of ``after`` ``[1, n]`` behind a prompt ``[1, C]``, prefilled or not, against the model's own."""
    baseline = METHODS.load("baseline")()
    exact = Runner(runner.model, runner.geometry, {}, CacheOptions(None))
    prompt = prompt or exact.prefill(tokens, baseline.needs)
    ours = exact.logits(exact.forward(after, exact.compress(baseline, prompt)))
    own, _ = _own(runner, tokens, [after])
    limit = ROUNDINGS * torch.finfo(own.dtype).eps * float(own.abs().max())
    gap = _largest(ours.to(own.device) - own)
    if gap > limit:  # a deep model may differ so from itself
        half = max(1, after.shape[1] // 2)
        limit = max(limit, OWN * _largest(_own(runner, tokens, [after[:, :half], after[:, half:]])[0] - own))
    return Gap(gap <= limit, gap, f"largest logit gap to the model's own forward and DynamicCache (limit {limit:.2g})")


@torch.inference_mode()
def head_gap(runner: Runner, tokens: Tensor) -> Gap:
    """Logits of the model's own hidden states through :meth:`Runner.logits`, against those that the model makes of them."""
    few = tokens[:, : min(8, tokens.shape[1])]
    own, hidden = _own(runner, None, [few])
    ours = runner.logits(hidden)
    coarse = max((own.dtype, ours.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    limit = HEAD * torch.finfo(coarse).eps * float(own.abs().max())
    gap = _largest(ours.to(own) - own) if ours.shape == own.shape else float("inf")
    return Gap(gap <= limit, min(gap, 1e30), f"largest logit gap of the head alone: a scale or a cap shows here (limit {limit:.2g})")


def _own(runner: Runner, tokens: Tensor | None, forwards: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The model's own logits, and its final hidden states, of tokens fed in one or more forwards behind a prompt."""
    from transformers import DynamicCache

    model: Any = runner.model
    states: list[Tensor] = []
    model.set_attn_implementation("sdpa")
    hook = decoder_of(model).register_forward_hook(lambda _m, _i, out: states.append(out.last_hidden_state))
    try:
        cache = DynamicCache(config=model.config)
        if tokens is not None:
            runner.forward(tokens, cache)
            states.clear()
        logits = torch.cat([model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in forwards if part.shape[1]], 1)
    finally:
        hook.remove()
        use_kvbench_attention(model)
    return logits, torch.cat(states, 1)


def _largest(gap: Tensor) -> float:
    return float(gap.abs().double().nan_to_num(nan=torch.inf).max())
