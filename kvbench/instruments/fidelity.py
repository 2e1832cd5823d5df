"""How near what a compressed prompt reads as is to the prompt: keys, values, attention over them, and its output.

The reference is what the baseline stores: keys and values rounded to the cache's dtype, keys with RoPE applied, as
attention reads both. Everything is measured right after compression, of the prompt alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvbench.caches.attend import fold, unfold
from kvbench.caches.cache import KVCache
from kvbench.caches.layer import LayerCache, TokenView
from kvbench.caches.ledger import ByteLedger
from kvbench.caches.ragged import RaggedLayer
from kvbench.instruments.protocol import Prompt


def as_stored(view: TokenView, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A prompt's keys and values as the baseline reads them back from ``dtype``, ``[B, Hkv, T, D]`` in float32 or wider.

    They lie in memory as what is restored does, so that equal numbers give equal products to the last bit.
    """
    keys, values = (x.to(dtype).to(view.wide).contiguous() for x in (view.keys, view.values))
    return keys, values


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the last axes ``[..., W]`` → ``[...]``, float64: exactly 1 of equal vectors (zeros too), 0 of a vector and zeros."""
    a, b = a.double(), b.double()
    aa, bb, ab = (a * a).sum(-1), (b * b).sum(-1), (a * b).sum(-1)
    cosine = ab / (aa * bb).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where((aa == 0) & (bb == 0), 1.0, cosine).clamp(-1.0, 1.0)


def losses(true: Tensor, read: Tensor, held: Tensor) -> dict[str, Tensor]:
    """Sums over the tokens of keys, or values, ``[B, H, T, D]``; they add up over samples.

    Returns:
        ``[B, H]`` each, float64: ``error`` ‖X − X̂‖² and ``energy`` ‖X‖² over the tokens ``held`` ``[B, H, T]``,
        ``cosine`` the sum over those tokens, ``energy_all`` ‖X‖² over all. A token that is not held reads as zeros:
        over all tokens it adds its energy to the error, and 0 to the cosine.
    """
    energy = true.double().square().sum(-1)
    error = (true.double() - read.double()).square().sum(-1)
    return {
        "error": (error * held).sum(-1),
        "energy": (energy * held).sum(-1),
        "energy_all": energy.sum(-1),
        "cosine": (similarity(true, read) * held).sum(-1),
    }


def attention_map(q: Tensor, keys: Tensor, scaling: float, held: Tensor | None = None) -> Tensor:
    """Softmax of queries ``[B, Hq, m, D]`` over the prompt's keys ``[B, Hkv, T, D]`` that are ``held`` ``[B, Hkv, T]``: ``[B, Hq, m, T]``.

    Every query comes after the prompt and sees all of it. In float32 or wider; tokens that are not held get 0.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    logits = fold(q, keys.shape[1]).to(wide) @ keys.to(wide).transpose(2, 3) * scaling
    if held is None:
        return unfold(logits.softmax(-1), q.shape[1])
    missing = ~held[:, :, None]
    probs = logits.masked_fill(missing, float("-inf")).softmax(-1).masked_fill(missing, 0.0)  # a head that holds nothing attends to nothing
    return unfold(probs, q.shape[1])


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """``½ Σ |p − q|`` of maps ``[..., T]`` → ``[...]``, float64; what a map lacks of 1 counts as attention to nothing."""
    p, q = p.double(), q.double()
    return ((p - q).abs().sum(-1) + (p.sum(-1) - q.sum(-1)).abs()) / 2


def weighed(probs: Tensor, values: Tensor) -> Tensor:
    """Attention's output ``[B, Hq, m, D]`` of a map ``[B, Hq, m, T]`` over values ``[B, Hkv, T, D]``."""
    return unfold(fold(probs, values.shape[1]) @ values.to(probs.dtype), probs.shape[1])


def own_output(layer: LayerCache, q: Tensor) -> Tensor:
    """Attention of queries ``[B, Hq, m, D]`` over the stored prompt by the layer's own ``attend``: ``[B, Hq, m, D]``.

    ``attend`` takes the newest stored tokens for the queries' own. Each query is therefore given as a head of its own
    with one query, which sees all that is stored.
    """
    if isinstance(layer, RaggedLayer):
        out = torch.empty_like(q)
        for cell, head in layer.fill(q.shape[0]):
            out[cell.rows, cell.queries] = own_output(head, q[cell.rows, cell.queries])
        return out
    b, heads, m, d = q.shape
    return layer.attend(q.reshape(b, heads * m, 1, d)).reshape(b, heads, m, -1)


@torch.inference_mode()
def attention(cache: KVCache, prompt: Prompt, queries: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Attention of ``queries`` over a just compressed ``prompt`` against the same over what the baseline stores.

    Args:
        queries: ``[B, Hq, m, D]`` a layer, RoPE applied; all of them come after the prompt.

    Returns:
        One record a row: means over heads and queries by layer ``[L]``. ``cosine`` and ``tv`` (total variation) of the
        maps, ``output_cosine`` of what attention gives. ``compared`` is ``maps``; or ``outputs``, where the method cannot say
        which tokens it reads, and its own attention is all that there is to compare.
    """
    try:
        compared = "maps"
        found = [_layer_maps(*of) for of in zip(cache.layers, prompt.views, queries, strict=True)]
    except NotImplementedError:
        compared = "outputs"
        found = [_layer_outputs(*of) for of in zip(cache.layers, prompt.views, queries, strict=True)]
    rows = prompt.views[0].keys.shape[0]
    return [
        {"compared": compared} | {name: plain(torch.stack([of[name][row] for of in found])) for name in found[0]} for row in range(rows)
    ]


def _layer_maps(layer: LayerCache, view: TokenView, q: Tensor) -> dict[str, Tensor]:
    """Of one layer, ``[B]`` each."""
    read, (keys, values) = layer.restored(view, view.wide), as_stored(view, layer.context.dtype)
    full, own = attention_map(q, keys, view.scaling), attention_map(q, read.keys, view.scaling, read.held)
    outputs = similarity(weighed(full, values), weighed(own, read.values))
    found = {"cosine": similarity(full, own), "tv": total_variation(full, own), "output_cosine": outputs}
    return {name: of.flatten(1).mean(1).cpu() for name, of in found.items()}


def _layer_outputs(layer: LayerCache, view: TokenView, q: Tensor) -> dict[str, Tensor]:
    keys, values = as_stored(view, layer.context.dtype)
    outputs = similarity(weighed(attention_map(q, keys, view.scaling), values), own_output(layer, q))
    return {"output_cosine": outputs.flatten(1).mean(1).cpu()}


def side_bytes(ledger: ByteLedger) -> dict[str, int]:
    """Stored bytes of keys, of values, and of what belongs to neither or both (positions, lengths, verdicts), by the ledger's names."""
    sides = {"k": 0, "v": 0, "other": 0}
    for name, size in ledger.items.items():
        sides["k" if "key" in name else "v" if "value" in name else "other"] += size
    return sides


@torch.inference_mode()
def reconstruction(cache: KVCache, prompt: Prompt) -> list[dict[str, Any]]:
    """What a just compressed ``prompt`` reads as against what it was: one record a row of the batch, plain values.

    Returns:
        ``tokens``, ``head_dim``; ``held`` tokens ``[L][Hkv]``; for sides ``k`` and ``v`` the sums of :func:`losses`, ``[L][Hkv]``.

    Raises:
        NotImplementedError: the method cannot say what single tokens read as.
    """
    found = [_layer_losses(layer, view) for layer, view in zip(cache.layers, prompt.views, strict=True)]
    rows, tokens, head_dim = prompt.views[0].keys.shape[0], prompt.views[0].seen, prompt.views[0].keys.shape[3]
    return [
        {"tokens": tokens, "head_dim": head_dim} | {name: _row([of[name] for of in found], row) for name in ("held", "k", "v")}
        for row in range(rows)
    ]


def _layer_losses(layer: LayerCache, view: TokenView) -> dict[str, Any]:
    read = layer.restored(view, view.wide)
    keys, values = as_stored(view, layer.context.dtype)
    sides = {"k": losses(keys, read.keys, read.held), "v": losses(values, read.values, read.held)}
    return {"held": read.held.sum(-1).cpu()} | {side: {n: x.cpu() for n, x in sums.items()} for side, sums in sides.items()}


def _row(layers: list[Any], row: int) -> Any:
    """One row of what every layer says, as lists ``[L][Hkv]``."""
    if isinstance(layers[0], dict):
        return {name: _row([of[name] for of in layers], row) for name in layers[0]}
    return [plain(of[row]) if of.is_floating_point() else of[row].tolist() for of in layers]


def bytes_held(cache: KVCache, rows: int) -> dict[str, Any]:
    """Stored bytes of one sequence after the prompt: by side, and by layer."""
    return {
        "bytes": {side: size / rows for side, size in side_bytes(cache.ledger()).items()},
        "layer_bytes": [ledger.stored / rows for ledger in cache.per_layer()],
    }


def plain(values: Tensor) -> list[float]:
    """Numbers for the journal, to nine digits."""
    return [float(f"{x:.9g}") for x in values.double().flatten().tolist()]
