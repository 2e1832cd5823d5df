"""Figures of a continuation from its records: NLL and perplexity, divergence from the baseline, calibration, bytes; pure, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvbench.metrics.measured import Measured, MethodRecords, Summary
from kvbench.metrics.paired import paired, shared
from kvbench.metrics.rounding import is_within, rounding_of
from kvbench.metrics.sameness import mark_of
from kvbench.metrics.stats import ece, histogram_from_json, mean_interval, merge, quantile

PERCENTILES = {"kl_p50": 0.5, "kl_p90": 0.9, "kl_p99": 0.99, "kl_p999": 0.999}


def summarise(records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
    """Each method's figures; one prompt length after another where there are several."""
    by_point = {label: _by_point(of) for label, of in records.items() if of}
    reference = by_point.get(baseline or "", {})
    return {label: _over_points(points, reference, label == baseline) for label, points in by_point.items()}


def _by_point(records: MethodRecords) -> dict[str, dict[str, Any]]:
    """Point → sample → data; the run's own context, whose keys name no point, comes first, then longer before shorter."""
    found: dict[str, dict[str, Any]] = {}
    for key, data in records.items():
        point, _, sample = key.rpartition("/")
        found.setdefault(point, {})[sample] = data
    return {point: found[point] for point in sorted(found, key=_place)}


def _place(point: str) -> tuple[bool, int]:
    return bool(point), -int(point.rpartition("=")[2] or 0)


def _over_points(points: Mapping[str, MethodRecords], reference: Mapping[str, MethodRecords], is_baseline: bool) -> Summary:
    """The first point's flat fields, and what was measured at all."""
    each = {point: _summary(of, reference.get(point, {}), is_baseline) for point, of in points.items()}
    first = next(iter(each.values()))
    return Summary(first.fields, [replace(m, point=point) for point, found in each.items() for m in found.measured])


def _summary(records: MethodRecords, reference: MethodRecords, is_baseline: bool) -> Summary:
    keys = sorted(records, key=int)
    total = {name: sum(records[k][name] for k in keys) for name in ("tokens", "nll", "kl", "agree", "tokens_read_compressed")}
    nll = _mean_nll({k: records[k] for k in keys})
    spread, moved = mean_interval(list(nll.values())), rounding_of(records[k] for k in keys)
    fields: dict[str, Any] = {
        "samples": len(keys),
        "total_tokens": total["tokens"],
        "tokens_read_compressed": total["tokens_read_compressed"],
        "avg_nll": total["nll"] / total["tokens"],
        "perplexity": _exp(total["nll"] / total["tokens"]),
        "perplexity_low": _exp(spread.low),
        "perplexity_high": _exp(spread.high),
        **(moved.fields if moved else {}),
        **({} if is_baseline else _against(records, reference, keys)),
        **_bytes(records, keys),
    }
    if (kept := mark_of(records)) is not None:
        fields["kept_tokens"] = kept
    if not is_baseline:
        fields |= _divergence(records, keys, total)
    fields["ece"] = _ece(records, keys)
    return Summary(fields, _measured(fields, records, keys, nll, is_baseline))


def _exp(value: float | None) -> float | None:
    return None if value is None else math.exp(min(value, 700.0))


def _against(records: MethodRecords, reference: MethodRecords, keys: Sequence[str]) -> dict[str, Any]:
    """Change of perplexity on the samples that both have, with its paired interval."""
    base, own = shared(_mean_nll(reference), _mean_nll({k: records[k] for k in keys}))
    if not base:
        return {}
    change = paired(base, own, "loss")
    before = math.exp(min(700.0, math.fsum(base) / len(base)))
    return {
        "ppl_delta": before * math.expm1(min(change.difference, 700.0)),
        "ppl_delta_pct": _percent(change.difference),
        "delta_low": _percent(change.low),
        "delta_high": _percent(change.high),
        "within_rounding": is_within(change.difference, *(of.nll for of in map(rounding_of, (records.values(), reference.values())) if of)),
    }


def _mean_nll(records: MethodRecords) -> dict[str, float]:
    return {key: data["nll"] / data["tokens"] for key, data in records.items()}


def _percent(change: float | None) -> float | None:
    """A change of the NLL as one of perplexity."""
    return None if change is None else 100 * math.expm1(min(change, 700.0))


def _divergence(records: MethodRecords, keys: Sequence[str], total: Mapping[str, float]) -> dict[str, Any]:
    hist = merge(histogram_from_json(records[k]["kl_hist"]) for k in keys)
    spread = mean_interval([records[k]["kl"] / records[k]["tokens"] for k in keys])
    return {
        "kl": total["kl"] / total["tokens"],
        "kl_low": spread.low,
        "kl_high": spread.high,
        **{name: quantile(hist, q) for name, q in PERCENTILES.items()},
        "kl_max": max(records[k]["kl_max"] for k in keys),
        "top1": total["agree"] / total["tokens"],
    }


def _ece(records: MethodRecords, keys: Sequence[str]) -> float:
    columns = (_added([records[k][name] for k in keys]) for name in ("ece_count", "ece_confidence", "ece_correct"))
    return ece(zip(*columns, strict=True))


def _added(rows: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(column) for column in zip(*rows, strict=True)]


def _bytes(records: MethodRecords, keys: Sequence[str]) -> dict[str, Any]:
    names = ("stored_bytes", "allocated_bytes", "artefact_bytes", "baseline_bytes", "stored_bytes_end", "baseline_bytes_end")
    mean = {name: math.fsum(records[k][name] for k in keys) / len(keys) for name in (*names, "keys_held", "keys_total")}
    ratio = 1 - mean["stored_bytes"] / mean["baseline_bytes"]
    total, kept = round(mean["keys_total"] * len(keys)), round(mean["keys_held"] * len(keys))
    return {
        **{name: mean[name] for name in names},
        "compression_ratio": ratio,
        "compression_factor": mean["baseline_bytes"] / mean["stored_bytes"],
        "compression_factor_end": mean["baseline_bytes_end"] / mean["stored_bytes_end"],
        "compression_stats": {
            "avg_compression_ratio": ratio,
            "sparsity_percentage": 100 * (1 - kept / total),
            "total_keys_original": total,
            "total_keys_kept": kept,
            "total_keys_discarded": total - kept,
        },
    }


def _measured(
    fields: Mapping[str, Any], records: MethodRecords, keys: Sequence[str], nll: Mapping[str, float], is_baseline: bool
) -> list[Measured]:
    per_sample = {name: {k: records[k][name] / records[k]["tokens"] for k in keys} for name in ("kl", "agree")}
    low, high = fields["perplexity_low"], fields["perplexity_high"]
    found = [
        Measured("perplexity", fields["perplexity"], "1", "paired", "lower", "", low, high, nll, "log", "mean", fields.get("rounding_nll")),
        Measured("ece", fields["ece"], "1", "paired", "lower", samples={k: _ece(records, [k]) for k in keys}, scoring="mean"),
        Measured("stored_bytes", fields["stored_bytes"], "bytes", "exact", "lower"),
        Measured("compression_factor", fields["compression_factor"], "1", "exact", "higher"),
    ]
    if not is_baseline:
        found[1:1] = [
            Measured(
                "kl_mean",
                fields["kl"],
                "nats",
                "paired",
                "lower",
                "",
                fields["kl_low"],
                fields["kl_high"],
                per_sample["kl"],
                scoring="mean",
                rounding=fields.get("rounding_kl"),
            ),
            Measured("top1_agreement", fields["top1"], "1", "paired", "higher", samples=per_sample["agree"], scoring="mean"),
        ]
    return found
