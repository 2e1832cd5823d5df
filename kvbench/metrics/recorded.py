"""What one record of each evaluator holds, for whoever reads records back from a file.

Fields that are not named here are left as they are: records may grow. What no type can say (that lists are as long as each
other over all samples) shows when figures are made of them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

Number = Annotated[float, Meta(ge=-1e300, le=1e300)]
"""Finite."""
Positive = Annotated[float, Meta(gt=0.0, le=1e300)]
Amount = Annotated[float, Meta(ge=0.0, le=1e300)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Count = Annotated[int, Meta(ge=0, le=1 << 53)]
AtLeastOne = Annotated[int, Meta(ge=1, le=1 << 53)]
Numbers = Annotated[list[Number], Meta(min_length=1)]
Heads = Annotated[list[Numbers], Meta(min_length=1)]
"""``[L][H]``: a number for each layer and head."""
Bin = Annotated[int, Meta(ge=0, le=9999)]
"""A key, written as text: read as a number it costs a tenth of what a pattern does."""
Unknown = Number | None
"""A number, or not known."""


class Perplexity(TypedDict):
    """One sample's continuation: sums over its tokens, and bytes of one sequence."""

    tokens: AtLeastOne
    nll: Number
    kl: Number
    agree: Amount
    tokens_read_compressed: Count
    ece_count: list[Amount]
    ece_confidence: list[Amount]
    ece_correct: list[Amount]
    stored_bytes: Positive
    allocated_bytes: Positive
    artefact_bytes: Amount
    baseline_bytes: Positive
    stored_bytes_end: Positive
    baseline_bytes_end: Positive
    keys_held: Amount
    keys_total: Positive
    kl_max: NotRequired[Number]
    kl_hist: NotRequired[Annotated[dict[Bin, Count], Meta(min_length=1)]]


class Timed(TypedDict):
    """One repeat at one point, or that memory ran out there."""

    batch: AtLeastOne
    context: Count
    warmup: NotRequired[bool]
    out_of_memory: NotRequired[bool]
    reason: NotRequired[str]
    read_path: NotRequired[str]
    steps: NotRequired[AtLeastOne]
    decode_s: NotRequired[Positive]
    prefill_s: NotRequired[Unknown]
    compress_s: NotRequired[Unknown]
    capture_s: NotRequired[Unknown]
    prepare_s: NotRequired[Unknown]
    flush_s: NotRequired[Unknown]
    limit: NotRequired[Positive | None]
    energy_joules: NotRequired[Unknown]


class Weighed(TypedDict):
    """Bytes at one point."""

    batch: AtLeastOne
    context: Count
    stored_bytes: Positive
    allocated_bytes: Positive
    baseline_bytes: Positive
    bytes_per_token: Positive
    slack_bytes: NotRequired[Amount]
    ledger: NotRequired[dict[str, Count]]
    artefacts: NotRequired[dict[str, Count]]
    per_layer: NotRequired[list[Amount]]
    resident_bytes: NotRequired[Count | None]
    gpu_used_bytes: NotRequired[Count | None]
    allocator_peak_bytes: NotRequired[Count | None]
    allocator_now_bytes: NotRequired[Count | None]


class Probe(TypedDict):
    """One size that was tried."""

    find: Literal["batch", "context"]
    grain: AtLeastOne
    most: Count
    batch: Count
    context: Count
    out_of_memory: bool
    read_path: NotRequired[str]
    stored_bytes: NotRequired[Unknown]
    peak_bytes: NotRequired[Unknown]
    budget_bytes: NotRequired[Unknown]
    limited_by: NotRequired[str]
    reason: NotRequired[str]


class Reconstructed(TypedDict):
    """What one prompt reads as after it was stored, or why it cannot be read."""

    baseline_bytes: NotRequired[Positive]
    bytes: NotRequired[dict[str, Amount]]
    tokens: NotRequired[AtLeastOne]
    head_dim: NotRequired[AtLeastOne]
    held: NotRequired[Heads]
    k: NotRequired[dict[str, Heads]]
    v: NotRequired[dict[str, Heads]]
    unread: NotRequired[str]
    method: NotRequired[str]
    ladder: NotRequired[str]
    step: NotRequired[str | int | float]


class Attended(TypedDict):
    """How near attention is, by layer; which measures there are depends on the method."""

    compared: str
    queries: Count


class Spectrum(TypedDict):
    """The spread of keys and values: side → over what → figure → ``[L][H]``."""

    tokens: Count
    kv_heads: AtLeastOne
    head_dim: AtLeastOne
    ranks: list[AtLeastOne]
    centred: bool
    k: dict[str, dict[str, Heads]]
    v: dict[str, dict[str, Heads]]
    k_before_rope: NotRequired[dict[str, dict[str, Heads]]]


class Found(TypedDict):
    """One answer about needles."""

    answer: str
    exact: Share
    graded: Share
    similarity: Number
    stored_bytes: Positive
    baseline_bytes: Positive
    expected: NotRequired[list[str]]


class Asked(TypedDict):
    """One question of a task: metrics by name, and bytes of its compressed context."""

    column: str
    metrics: dict[str, Any]
    stored_bytes: Amount
    baseline_bytes: Amount
    aggregation: NotRequired[dict[str, str]]
    lower: NotRequired[list[str]]


class Ruled(TypedDict):
    """One sample of a RULER task."""

    task: str
    length: AtLeastOne
    metrics: dict[str, Share]
    stored_bytes: Amount
    baseline_bytes: Amount


class Written(TypedDict):
    """One free-running text."""

    tokens: list[Count]
    text: str
    short_text: str
    stored_bytes: Positive
    baseline_bytes: Positive
    prompt_end: NotRequired[str]
