"""What records of ``speed`` come to: medians by point, the roofline's share, energy a token; pure, without torch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvbench.metrics.measured import Better, Measured, MethodRecords, Summary
from kvbench.metrics.stats import median

Record = Mapping[str, Any]
First = tuple[int, int | None]
"""Batch and context of the point asked for first; no context is the only one there is."""
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Metric:
    """A figure of one record, ``None`` where the record lacks a part.

    Attributes:
        middle: Of the repeats' values: the median, or where single ones are coarse their mean.
    """

    of: Callable[[Record], float | None]
    unit: str
    better: Better
    middle: Callable[[Sequence[float]], float] = median


def _has(*names: str) -> Callable[[Callable[[Record], float]], Callable[[Record], float | None]]:
    """A formula of these fields."""

    def limited(formula: Callable[[Record], float]) -> Callable[[Record], float | None]:
        return lambda r: formula(r) if all(r.get(name) is not None for name in names) else None

    return limited


def tokens_per_s(record: Record) -> float:
    """Tokens of all sequences a second of decoding."""
    return float(record["batch"] * record["steps"] / record["decode_s"])


METRICS: Mapping[str, Metric] = {
    "ttft_s": Metric(_has("prefill_s", "compress_s")(lambda r: r["prefill_s"] + r["compress_s"]), "seconds", "lower"),
    "prefill_s": Metric(_has("prefill_s")(lambda r: r["prefill_s"]), "seconds", "lower"),
    "compress_s": Metric(_has("compress_s")(lambda r: r["compress_s"]), "seconds", "lower"),
    "tpot_s": Metric(lambda r: r["decode_s"] / r["steps"], "seconds", "lower"),
    "tokens_per_s": Metric(tokens_per_s, "tokens/s", "higher"),
    "roofline_tokens_per_s": Metric(_has("limit")(lambda r: r["limit"]), "tokens/s", "neither"),
    "roofline_fraction": Metric(_has("limit")(lambda r: tokens_per_s(r) / r["limit"]), "1", "higher"),
    "joules_per_token": Metric(
        _has("energy_joules")(lambda r: r["energy_joules"] / (r["batch"] * r["steps"])), "joules", "lower", statistics.fmean
    ),
    "flush_s": Metric(_has("flush_s")(lambda r: r["flush_s"]), "seconds", "lower"),
    "capture_s": Metric(lambda r: r["capture_s"] if r.get("read_path") == "fused" else None, "seconds", "lower"),
    "prepare_s": Metric(lambda r: r["prepare_s"] if r.get("read_path") == "fused" else None, "seconds", "lower"),
}
"""Name → metric. A counter of energy that did not move says nothing, and is left out."""


@dataclass(frozen=True)
class At:
    """One method at one point.

    Attributes:
        repeats: Its timed records, in order of their keys; empty where memory ran out. read_path: Of the last.
    """

    batch: int
    context: int
    repeats: Sequence[Record] = ()

    @property
    def is_full(self) -> bool:
        return not self.repeats

    @property
    def read_path(self) -> str | None:
        return self.repeats[-1]["read_path"] if self.repeats else None

    @property
    def point(self) -> str:
        return f"batch={self.batch},context={self.context}"

    def values(self, name: str) -> list[float]:
        """A metric's value by repeat; empty where the records do not have it."""
        found = [v for r in self.repeats if (v := METRICS[name].of(r)) is not None]
        return found if len(found) == len(self.repeats) and (name != "joules_per_token" or any(found)) else []

    def middle(self, name: str) -> float | None:
        values = self.values(name)
        return METRICS[name].middle(values) if values else None

    def fact(self, name: str) -> Any:
        """A field of the last record."""
        return self.repeats[-1].get(name) if self.repeats else None


def by_point(records: MethodRecords) -> dict[tuple[int, int], At]:
    """(batch, context) → what was timed or ran out of memory there, rising; warm-ups are left out."""
    timed: dict[tuple[int, int], list[Record]] = {}
    for key in sorted(records, key=lambda key: (len(key), key)):  # repeat 10 comes after repeat 9
        record = records[key]
        full = record.get("out_of_memory", False)
        if full or not record["warmup"]:
            timed.setdefault((record["batch"], record["context"]), []).extend([] if full else [record])
    return {at: At(*at, timed[at]) for at in sorted(timed)}


def summaries(records: Mapping[str, MethodRecords], baseline: str | None, first: First) -> dict[str, Summary]:
    """Every method's figures; a row's flat fields are those of the ``first`` point."""
    found = {label: by_point(of) for label, of in records.items()}
    reference = found.get(baseline or "", {})
    return {label: _summary(at, reference, first) for label, at in found.items()}


def _summary(found: Mapping[tuple[int, int], At], reference: Mapping[tuple[int, int], At], first: First) -> Summary:
    if not found:
        return Summary()
    timed = {place: at for place, at in found.items() if not at.is_full}
    table = {at.point: {name: values for name in METRICS if (values := at.values(name))} for at in timed.values()}
    fields: dict[str, Any] = {"timings": table, "read_paths": {at.point: at.read_path for at in timed.values()}}
    full = [at.point for at in found.values() if at.is_full]
    shown = _asked(found, first)
    if not shown.is_full:
        fields |= {name: shown.middle(name) for name in METRICS if shown.values(name)}
        fields |= {"read_path": shown.read_path, "other_read_path": other_path(shown, reference.get((shown.batch, shown.context)))}
    if full:
        fields["out_of_memory"] = full
    return Summary(fields, [m for at in timed.values() for m in _measured(at)])


def _asked(found: Mapping[tuple[int, int], At], first: First) -> At:
    """The point asked for first, or while it was not reached the least there is."""
    batch, context = first
    return next((at for at in found.values() if at.batch == batch and context in (None, at.context)), next(iter(found.values())))


def other_path(own: At, reference: At | None) -> str | None:
    """The read path, where it is not the one that the baseline was timed by: the two speeds form no ratio."""
    if reference is None or reference.is_full or own.read_path == reference.read_path:
        return None
    return own.read_path


def _measured(at: At) -> list[Measured]:
    path = at.read_path if at.read_path not in (None, "reference") else ""
    return [
        Measured(
            name, metric.middle(values), metric.unit, "noisy", metric.better, at.point,
            samples={str(i): value for i, value in enumerate(values)}, read_path=path or "",
        )
        for name, metric in METRICS.items()
        if (values := at.values(name))
    ]  # fmt: skip
