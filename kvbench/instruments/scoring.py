"""From final hidden states to scores, slab by slab: no more than ``SLAB_BYTES`` of logits of one model exist at once.

With p the baseline's distribution and d = z − z₀ the difference of two sets of logits, everything that a
method is judged by follows from one pass over d: with m = Σ p d, ``KL(p‖q) = log Σ p e^{d − m}`` and
``log Z = log Z₀ + m + KL``. The difference is small where a method is good, so float32 keeps KL accurate
to its own size (and exactly 0 for the baseline against itself), which subtracting two log-softmaxes does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvbench.instruments.protocol import Runner
from kvbench.metrics.histogram import histogram, histogram_to_json, kl_bin_index

SLAB_BYTES = 32 * 2**20
ECE_BINS = 15


@dataclass(frozen=True)
class TokenScores:
    """Scores of a batch ``[B, S]``, on the CPU.

    Attributes:
        nll: Negative log-likelihood of the true token, nats.
        kl: Divergence of the method's distribution from the baseline's, nats.
        agrees: Whether both have the same first choice. confidence: Probability of the method's first choice.
        correct: Whether its first choice is the true token.
    """

    nll: Tensor
    kl: Tensor
    agrees: Tensor
    confidence: Tensor
    correct: Tensor

    def record(self, row: int) -> dict[str, Any]:
        """One sample's sums, which merge by addition.

        Raises:
            FloatingPointError: a score is NaN or infinite.
        """
        nll, kl = self.nll[row], self.kl[row]
        broken = ~(torch.isfinite(nll) & torch.isfinite(kl))
        if bool(broken.any()):
            raise FloatingPointError(f"{int(broken.sum())} of {nll.numel()} token scores are NaN or infinite")
        return {
            "tokens": nll.numel(),
            "nll": float(nll.double().sum()),
            "kl": float(kl.double().sum()),
            "kl_max": float(kl.max()),
            "kl_hist": histogram_to_json(histogram(kl_bin_index(kl.numpy()))),
            "agree": int(self.agrees[row].sum()),
            **_calibration(self.confidence[row], self.correct[row]),
        }


def _calibration(confidence: Tensor, correct: Tensor) -> dict[str, Any]:
    bins = (confidence * ECE_BINS).long().clamp(0, ECE_BINS - 1)
    sums = (torch.bincount(bins, weights=w.double(), minlength=ECE_BINS) for w in (torch.ones_like(confidence), confidence, correct))
    count, confident, right = (s.tolist() for s in sums)
    return {"ece_count": [int(c) for c in count], "ece_confidence": confident, "ece_correct": [int(c) for c in right]}


@torch.inference_mode()
def score(runner: Runner, hidden: Mapping[str, Tensor], targets: Tensor, baseline: str) -> dict[str, TokenScores]:
    """Score every method's hidden states against the true tokens and the baseline.

    Args:
        runner: Gives the head. hidden: label → ``[B, S, hidden]``, the baseline's among them.
        targets: True tokens ``[B, S]``. baseline: Its label.
    """
    batch, length = targets.shape
    flat = {label: h.reshape(batch * length, -1) for label, h in hidden.items()}
    true = targets.reshape(-1)
    found: dict[str, list[tuple[Tensor, ...]]] = {label: [] for label in flat}
    rows = _slab_rows(runner)
    for start in range(0, batch * length, rows):
        slab = slice(start, start + rows)
        reference = _Reference(runner.logits(flat[baseline][slab]))
        for label, states in flat.items():
            z = reference.logits if label == baseline else _wide(runner.logits(states[slab]))
            found[label].append(reference.judge(z, true[slab].to(z.device)))
    return {label: _joined(parts, batch, length) for label, parts in found.items()}


def _slab_rows(runner: Runner) -> int:
    vocabulary = runner.model.get_output_embeddings().weight.shape[0]
    return int(max(1, SLAB_BYTES // (vocabulary * 4)))


def _joined(parts: list[tuple[Tensor, ...]], batch: int, length: int) -> TokenScores:
    columns = (torch.cat(column).reshape(batch, length) for column in zip(*parts, strict=True))
    return TokenScores(*columns)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _Reference:
    """The baseline's slab: logits ``[n, V]``, its distribution and first choice."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = _wide(logits)
        self.log_z = self.logits.logsumexp(-1)
        self.probs = self.logits.softmax(-1)  # not exp(z - log Z): at |z| = 1,000 that difference is wrong by 6e-5
        self.choice = self.logits.argmax(-1)

    def judge(self, z: Tensor, true: Tensor) -> tuple[Tensor, ...]:
        """(nll, kl, agrees, confidence, correct), each ``[n]`` on the CPU."""
        log_z, kl = self._log_z_and_kl(z)
        top, choice = z.max(-1)
        nll = log_z - z.gather(1, true[:, None])[:, 0]
        scores = (nll, kl, choice == self.choice, (top - log_z).exp(), choice == true)
        return tuple(s.cpu() for s in scores)

    def _log_z_and_kl(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if z is self.logits:
            return self.log_z, torch.zeros_like(self.log_z)
        d = z - self.logits
        mean = (d[:, None] @ self.probs[:, :, None])[:, 0, 0]
        grown = d.sub_(mean[:, None]).expm1_()
        kl = (grown[:, None] @ self.probs[:, :, None])[:, 0, 0].log1p().clamp_min(0)
        log_z = self.log_z + mean + kl
        far = ~torch.isfinite(kl) | (kl > 20)  # e^d left float32's comfort: take the long way
        if bool(far.any()):
            log_z[far] = z[far].logsumexp(-1)
            kl[far] = (log_z[far] - self.log_z[far] - mean[far]).clamp_min(0)
        return log_z, kl
