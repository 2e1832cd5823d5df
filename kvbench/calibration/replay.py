"""What each token of a prompt is worth when the model repeats the prompt: the KVzip+ score (KVzap, arXiv 2601.07891, §3).

The model reads ``[prompt] Repeat the previous context exactly. [prompt]``. In the log domain, for KV head h and token i,

    log s_i = max over the query heads of h and the repeated tokens j of
              log a_ji − log ‖h_j‖ + log ‖W_O v_i‖

where a is attention, h_j what the attention module was given for token j, and W_O the query head's block of the output
projection. NVIDIA's training code (kvpress, ``kvzap/train.py``) reckons the same on ``a_ji ‖W_O v_i‖ / ‖h_j‖``.

It wraps the text in the model's chat template and leaves the tokens before the prompt out of training. Here there is no
template and the prompt begins at position 0, as kvbench scores text: the first token, on which much attention rests, is
tested like any other and so is learnt from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kvbench.caches.attend import grouped_scores
from kvbench.caches.cache import capture_cache, captured, decoder_of
from kvbench.caches.needs import Needs
from kvbench.errors import UnsupportedModel, UsageError

if TYPE_CHECKING:
    from kvbench.caches.layer import TokenView
    from kvbench.calibration.source import Source

LONGEST = 1000
"""Tokens of a sample; about as many as the paper's 750 to 1,250, since attention is shared among all tokens."""
SAMPLES = 8
"""Least number of samples into which a text is cut."""
INSTRUCTION = "\n\nRepeat the previous context exactly.\n\n"
_SLAB = 128  # queries whose attention is held at once

Pair = tuple[Tensor, Tensor]
"""Hidden states ``[n, hidden]`` and log scores ``[n, Hkv]`` of the same tokens."""


def cut(tokens: Tensor) -> list[Tensor]:
    """All of the text in samples that are as long as each other to a token, at least ``SAMPLES`` of at most ``LONGEST`` tokens.

    Raises:
        UsageError: a text of less than 32 tokens a sample.
    """
    if len(tokens) // SAMPLES < 32:
        raise UsageError(f"a surrogate cannot be calibrated on {len(tokens)} tokens; it needs at least {32 * SAMPLES}")
    return list(tokens.tensor_split(max(SAMPLES, -(-len(tokens) // LONGEST))))


@torch.inference_mode()
def replay(source: Source, sample: Tensor) -> Iterator[Pair]:
    """One sample's hidden states and targets, layer by layer. Tokens without a finite target are left out.

    What begins a text begins the prompt, and not its repetition.
    """
    between = instruction(source.tokenizer).to(sample.device)
    length = len(source.head) + len(sample)
    cache = capture_cache(source.geometry, Needs(window=len(sample), hidden=True))
    twice = torch.cat((source.head, sample, between, sample))[None]
    decoder_of(source.model)(input_ids=twice, past_key_values=cache, use_cache=True)
    for view, module in zip(captured(cache), source.geometry.modules, strict=True):
        hidden = view.observed.hidden
        if hidden is None:
            raise UnsupportedModel("this model's attention modules are not called with hidden states", hint="use another --model")
        found = targets(view, hidden, output_blocks(module, view), length)[0].T
        usable = found.isfinite().all(1)  # not so for a padding token, whose embedding is zero
        yield hidden[0, :length][usable], found[usable]


def instruction(tokenizer: Any | None) -> Tensor:
    """Token ids between the prompt and its repetition; none without a tokenizer."""
    if tokenizer is None:
        return torch.empty(0, dtype=torch.long)
    return torch.tensor(tokenizer(INSTRUCTION, add_special_tokens=False, verbose=False)["input_ids"])


def targets(view: TokenView, hidden: Tensor, output: Tensor, length: int) -> Tensor:
    """Log scores ``[B, Hkv, length]`` of the first ``length`` tokens, float32 or wider.

    Args:
        view: The whole sequence; its n window queries are the repetition's. hidden: ``[B, T, hidden]``.
        output: The output projection by query head, ``[Hq, D, hidden]``.
    """
    queries = view.observed.window
    if queries is None:
        raise ValueError("the repetition's queries must be observed")
    n = queries.shape[2]
    norms = hidden[:, -n:].to(view.wide).norm(dim=-1)
    asked = torch.where(norms > 0, norms.log(), torch.inf)[:, None, :, None]  # a zero state asks nothing
    best = torch.full((*queries.shape[:2], length), -torch.inf, dtype=view.wide, device=queries.device)
    for start in range(0, n, _SLAB):
        end = min(n, start + _SLAB)
        keys = view.keys[:, :, : view.keys.shape[2] - n + end]
        logits = grouped_scores(queries[:, :, start:end], keys, view.scaling)
        received = logits[..., :length] - logits.logsumexp(-1, keepdim=True) - asked[:, :, start:end]
        best = torch.maximum(best, received.amax(2))
    values = view.values[:, :, :length].to(view.wide).repeat_interleave(queries.shape[1] // view.keys.shape[1], 1)
    written = torch.stack([(values[:, head] @ block.to(view.wide)).norm(dim=-1) for head, block in enumerate(output)], 1)
    return torch.unflatten(best + written.log(), 1, (view.keys.shape[1], -1)).amax(2)


def output_blocks(module: nn.Module, view: TokenView) -> Tensor:
    """The output projection by query head, ``[Hq, D, hidden]``.

    Raises:
        UnsupportedModel: the attention module has no plain ``o_proj``.
    """
    weight = getattr(getattr(module, "o_proj", None), "weight", None)
    width = view.layer.heads * view.layer.head_dim
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.shape[1:] != (width,):
        reason = "its attention has no output projection named o_proj in a plain number format"
        raise UnsupportedModel(f"a surrogate cannot be calibrated for this model: {reason}", hint="give published weights instead")
    return torch.unflatten(weight.detach().T, 0, (view.layer.heads, view.layer.head_dim))
