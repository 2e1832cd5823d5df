"""What was lost of keys and values, from the sums that :mod:`kvbench.instruments.fidelity` records; pure, without torch.

A record has, for each layer and KV head and for keys (``k``) and values (``v``), sums over tokens; records of several samples
add up. ``over="held"`` is of the tokens that the method holds; ``over="all"`` counts each one that it does not hold as a
vector of zeros: its whole energy is error, its cosine is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Over = Literal["all", "held"]
Side = Literal["k", "v"]
SIDES: tuple[Side, ...] = ("k", "v")
SIDE_NAMES: Mapping[Side, str] = {"k": "K", "v": "V"}
THRESHOLDS = (0.99, 0.95, 0.90, 0.75, 0.50)
"""Cosines below which a side is said to have failed."""


@dataclass(frozen=True)
class Loss:
    """Of some tokens of one side.

    Attributes:
        cosine: Mean over tokens of the cosine between the true vector and what is read.
        relative: ‖X − X̂‖_F / ‖X‖_F. mse: Mean square of X − X̂ over tokens and channels.
    """

    cosine: float
    relative: float
    mse: float


@dataclass(frozen=True)
class Means:
    """One side of one method over all layers and heads: the mean :class:`Loss`, and the layer of the lowest cosine."""

    loss: Loss
    worst_layer: int
    worst_cosine: float


def cells(records: Sequence[Mapping[str, Any]], side: Side, over: Over) -> list[list[Loss | None]]:
    """By layer and KV head; ``None`` where no token is held."""
    first = records[0][side]["error"]
    return [[_cell(records, side, over, layer, head) for head in range(len(first[layer]))] for layer in range(len(first))]


def _cell(records: Sequence[Mapping[str, Any]], side: Side, over: Over, layer: int, head: int) -> Loss | None:
    def total(name: str) -> float:
        return math.fsum(record[side][name][layer][head] for record in records)

    error, energy = total("error"), total("energy")
    count = sum(record["held"][layer][head] for record in records)
    if over == "all":
        whole = total("energy_all")
        error, energy, count = error + max(0.0, whole - energy), whole, sum(record["tokens"] for record in records)
    if not count:
        return None
    return Loss(total("cosine") / count, _ratio(error, energy), error / (count * records[0]["head_dim"]))


def _ratio(error: float, energy: float) -> float:
    return math.sqrt(error / energy) if energy else 0.0


def by_layer(records: Sequence[Mapping[str, Any]], side: Side, over: Over) -> list[Loss | None]:
    """Means over the heads of each layer."""
    return [mean(row) for row in cells(records, side, over)]


def means(records: Sequence[Mapping[str, Any]], side: Side, over: Over) -> Means | None:
    """Means over layers of means over heads."""
    layers = by_layer(records, side, over)
    known = [(loss.cosine, index) for index, loss in enumerate(layers) if loss is not None]
    loss = mean(layers)
    if loss is None:
        return None
    cosine, worst = min(known)
    return Means(loss, worst, cosine)


def mean(losses: Iterable[Loss | None]) -> Loss | None:
    """Each figure's mean over those that are known, or ``None``."""
    known = [loss for loss in losses if loss is not None]
    if not known:
        return None
    columns = ([getattr(loss, name) for loss in known] for name in ("cosine", "relative", "mse"))
    return Loss(*(math.fsum(column) / len(known) for column in columns))


def held_share(records: Sequence[Mapping[str, Any]]) -> float:
    """Share of the prompt's tokens that is held, over layers and heads."""
    held: float = sum(count for record in records for layer in record["held"] for count in layer)
    total: float = sum(record["tokens"] * sum(len(layer) for layer in record["held"]) for record in records)
    return held / total


# Where a side breaks ------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One step of a ladder for one side: how many times smaller the side is, and what that did to it."""

    step: str
    factor: float
    means: Means

    def cosine(self, where: str) -> float:
        """``mean`` over layers, or of the ``worst`` one."""
        return self.means.worst_cosine if where == "worst" else self.means.loss.cosine


@dataclass(frozen=True)
class Boundary:
    """The largest compression of a ladder that keeps a cosine; ``is_last`` where the ladder ends before it fails."""

    factor: float
    step: str
    is_last: bool


def factor(records: Sequence[Mapping[str, Any]], side: Side) -> float | None:
    """The side's baseline bytes over its stored bytes; what belongs to neither side is shared by both. ``None`` where it stores nothing."""
    stored = math.fsum(r["bytes"][side] + r["bytes"]["other"] / 2 for r in records)
    return math.fsum(r["baseline_bytes"] / 2 for r in records) / stored if stored else None


def boundary(points: Sequence[Point], threshold: float, where: str) -> Boundary | None:
    """The most compressed point that keeps ``threshold``, or ``None`` where none does."""
    kept = [p for p in points if p.cosine(where) >= threshold]
    if not kept:
        return None
    best = max(kept, key=lambda p: p.factor)
    return Boundary(best.factor, best.step, is_last=best.factor == max(p.factor for p in points))
