"""One method's line in every table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kvbench.metrics.measured import Measured

MethodStatus = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class Row:
    """One method's line in every table; ``None`` is "not measured (yet)".

    Attributes:
        perplexity, perplexity_low, perplexity_high: Over all scored tokens, 95 % interval over samples.
        delta_pct, delta_low, delta_high: Change of perplexity against the baseline in %, paired interval.
        kl: Mean KL divergence to the baseline, nats per token. top1: Agreement with its first choice, 0–1.
        factor: Baseline bytes over stored bytes, in numbers of ``cache_dtype``. stored_bytes: per sequence at the run's context.
        memory_bytes: Peak of the device's memory (NVML) or the worker's resident memory; ``memory_name`` says which.
        tokens_per_s, ttft_s: Decode speed and time to first token at the first timed point.
        roofline_tokens_per_s, roofline_fraction: What the bytes read in a step allow there, and the share of it that is reached.
        joules_per_token: Energy there. read_path: How stored bytes were read there, ``fused`` or ``reference``.
        other_read_path: The same where it is not the baseline's, so that the two speeds form no ratio.
        target_bytes: What its budget asks ``stored_bytes`` to be. settings: What was turned to meet it, ``rank=12``.
        headline: The main scores of the run's evaluators, short name → value in 0–1, higher is better.
        rounding_pct, rounding_kl: How far rounding alone moves perplexity, in %, and KL, in nats per token.
        within_rounding: Whether the change of perplexity is smaller than what rounding does to either row.
        kl_low, kl_high: 95 % interval over samples.
        measured: Metric → its figure at the evaluator's first point, with the samples that tell rows apart; a main score's is called
            ``headline:`` and its name.
        same_tokens_as: The first row that kept the same tokens in every sample, stored alike, to the last digit of its losses.
    """

    label: str
    status: MethodStatus
    progress: float
    error: str | None
    audit: str | None
    samples: int = 0
    perplexity: float | None = None
    perplexity_low: float | None = None
    perplexity_high: float | None = None
    delta_pct: float | None = None
    delta_low: float | None = None
    delta_high: float | None = None
    kl: float | None = None
    top1: float | None = None
    factor: float | None = None
    stored_bytes: float | None = None
    memory_bytes: int | None = None
    memory_name: str | None = None
    tokens_per_s: float | None = None
    ttft_s: float | None = None
    roofline_tokens_per_s: float | None = None
    roofline_fraction: float | None = None
    joules_per_token: float | None = None
    read_path: str | None = None
    other_read_path: str | None = None
    target_bytes: float | None = None
    settings: str = ""
    headline: Mapping[str, float] = field(default_factory=dict)
    cache_dtype: str | None = None
    rounding_pct: float | None = None
    rounding_kl: float | None = None
    within_rounding: bool = False
    kl_low: float | None = None
    kl_high: float | None = None
    measured: Mapping[str, Measured] = field(default_factory=dict, compare=False, repr=False)
    same_tokens_as: str | None = None
