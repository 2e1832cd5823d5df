"""The byte roofline of decoding: a step cannot end before its weights and the cache were read once.

``limit = batch / ((weights + stored bytes) / bandwidth)`` tokens a second, where the weights are those that a step
reads: every parameter but the embedding table, of which a step looks up one row a sequence.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kvbench.instruments.timing import timed
from kvbench.metrics.stats import median

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvbench.caches.fold import Fold
    from kvbench.instruments.session import Session

KEPT = "bandwidth"
"""Name under which a session keeps what was measured once."""
GPU_BUFFER, CPU_BUFFER = 1 << 30, 32 << 20
"""Bytes that are copied: far more than caches hold."""
GPU_COPIES = 10
"""Copies of one sample on a GPU, so that launching them weighs nothing."""
SAMPLES, LEAST_SAMPLES, SECONDS = 9, 3, 0.15
"""Samples of which the median is taken; no more are begun once so many seconds have passed."""
MIXTURES = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Names by which configs count experts, of which a step reads a few."""


@dataclass(frozen=True)
class Roofline:
    """What bounds a decode step.

    Attributes:
        weight_bytes: Weights that a step reads. stored_bytes: The cache's, all sequences. bandwidth: Bytes a second.
    """

    weight_bytes: int
    stored_bytes: int
    bandwidth: float

    def limit(self, batch: int) -> float:
        """Tokens a second of ``batch`` sequences that bytes allow."""
        return batch * self.bandwidth / (self.weight_bytes + self.stored_bytes)


def measured_once(session: Session) -> float:
    """:func:`copy_bandwidth` of the session's device, measured at the first call."""
    if KEPT not in session.kept:
        session.kept[KEPT] = copy_bandwidth(session.loaded.device)
    return float(session.kept[KEPT])


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written a second by a large copy on ``device``, the median of several."""
    gpu = device.type == "cuda"
    size = min(GPU_BUFFER, int(torch.cuda.mem_get_info(device)[0]) // 8) if gpu else CPU_BUFFER
    copies = GPU_COPIES if gpu else 1
    source = torch.ones(size // 4, dtype=torch.int32, device=device)
    target = torch.zeros_like(source)

    def copy() -> None:
        for _ in range(copies):
            target.copy_(source)

    timed(device, copy)  # pages are mapped and clocks are up
    found: list[float] = []
    started = time.perf_counter()
    while len(found) < LEAST_SAMPLES or (len(found) < SAMPLES and time.perf_counter() - started < SECONDS):
        found.append(2 * source.nbytes * copies / timed(device, copy)[1])
    return median(found)


def weight_bytes(model: Any) -> int | None:
    """Bytes of weights that one decode step of a ``transformers`` causal model reads; a tied head counts once, as the head.

    ``None`` for a mixture of experts: which of them a step reads depends on the tokens.
    """
    config = model.config.get_text_config()
    if any((getattr(config, name, None) or 0) > 1 for name in MIXTURES):
        return None
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    looked_up, head = ({id(p) for p in end.parameters()} if end is not None else set() for end in ends)
    read: int = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in looked_up - head)
    return read


def folded_difference(folds: Iterable[tuple[Any, Fold]]) -> int:
    """Bytes by which folded projections exceed those that they stand for, negative where they are smaller.

    Args:
        folds: Attention modules with their folds, whose ``v_proj`` has G·r rows in use; the others are filling.
    """
    total = 0
    for module, fold in folds:
        v, used = fold.v_proj, fold.groups * fold.rank
        total += (v.weight[:used].nbytes + (0 if v.bias is None else v.bias[:used].nbytes)) + _bytes(fold.o_proj)
        total -= _bytes(module.v_proj) + _bytes(module.o_proj)
    return total


def _bytes(linear: Any) -> int:
    return sum(t.nbytes for t in (linear.weight, linear.bias) if t is not None)
