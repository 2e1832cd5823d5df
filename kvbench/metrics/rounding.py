"""How far arithmetic alone moves a row's NLL and KL, from what :mod:`kvbench.instruments.reshaped` recorded; pure, without torch.

A record has, for some tokens of one sample, sums over them of each token's movement. What is made of it errs on the wide side:

- of one sample, the mean's movement is the larger of what was seen, ``|Σd| / n``, and of what movements of this size give where
  they point anywhere, ``√(Σd²) / n``: that movements happened to cancel in the one shape that was tried promises nothing;
- of a run, it is the largest of the samples that were walked again. A mean over N samples moves no further than its samples do; it
  is not divided by √N, since what rounds one sample up (a kernel, a code's edge) may round them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MEASURES = ("nll", "kl")


@dataclass(frozen=True)
class Rounding:
    """Of one row.

    Attributes:
        nll, kl: How far its means may move, nats per token. nll_max, kl_max: The token that moved most, nats.
        tokens: How many were walked again, over all samples.
    """

    nll: float
    kl: float
    nll_max: float
    kl_max: float
    tokens: int

    @property
    def fields(self) -> dict[str, float]:
        """For tables, ``rounding_pct`` being the movement of the NLL as one of perplexity, in %."""
        named = {f"rounding_{name}": value for name, value in vars(self).items()}
        return named | {"rounding_pct": 100.0 * math.expm1(min(self.nll, 700.0))}


def rounding_of(records: Iterable[Mapping[str, Any]]) -> Rounding | None:
    """What a method's ``records`` say, of which some hold a ``rounding``; ``None`` where none does."""
    found = [record["rounding"] for record in records if record.get("rounding")]
    if not found:
        return None
    moved = {name: max(_movement(of, name) for of in found) for name in MEASURES}
    largest = {f"{name}_max": max(of[f"{name}_max"] for of in found) for name in MEASURES}
    return Rounding(**moved, **largest, tokens=sum(of["tokens"] for of in found))


def _movement(of: Mapping[str, Any], name: str) -> float:
    """How far one sample's mean may move."""
    return float(max(abs(of[name]), math.sqrt(of[f"{name}_square"])) / of["tokens"])


def is_within(difference: float, *roundings: float | None) -> bool:
    """Whether a difference is smaller than what rounding does to either side; what was not measured is not counted."""
    return abs(difference) < max((r for r in roundings if r is not None), default=0.0)
