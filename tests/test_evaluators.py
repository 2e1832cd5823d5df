"""What evaluators say of records, against the same figures reckoned by hand."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import pytest
from scipy import stats as scipy_stats

from kvbench.evaluators.base import Summary
from kvbench.evaluators.memory import Memory
from kvbench.evaluators.perplexity import Perplexity
from kvbench.evaluators.speed import Speed
from kvbench.metrics import speed_tables
from kvbench.metrics.points import Point, points
from kvbench.metrics.stats import histogram, histogram_to_json, kl_bin_index
from kvbench.spec import RunSpec

TOKENS = 64
SAMPLES = 7


def record(nll: float, kls: list[float], agree: int, stored: float = 1000.0) -> dict[str, Any]:
    """One sample's record as the scorer and the evaluator write it; ``nll`` is the mean."""
    return {
        "tokens": TOKENS, "nll": nll * TOKENS, "kl": math.fsum(kls), "kl_max": max(kls),
        "kl_hist": histogram_to_json(histogram(kl_bin_index(kls))), "agree": agree,
        "ece_count": [TOKENS // 2, TOKENS // 2], "ece_confidence": [0.25 * TOKENS / 2, 0.9 * TOKENS / 2],
        "ece_correct": [TOKENS // 8, agree // 2], "tokens_read_compressed": TOKENS - 1,
        "stored_bytes": stored, "allocated_bytes": stored + 24, "artefact_bytes": 96, "baseline_bytes": 4000.0,
        "stored_bytes_end": 2 * stored, "baseline_bytes_end": 5000.0, "keys_held": 128, "keys_total": 512, "seconds": 0.1,
    }  # fmt: skip


def made_up(seed: int, shift: float) -> dict[str, dict[str, Any]]:
    draw = random.Random(seed)
    base = random.Random(0)
    found = {}
    for key in range(SAMPLES):
        nll = base.gauss(3.0, 0.4) + (draw.gauss(shift, 0.05) if shift else 0.0)
        kls = [draw.expovariate(10.0) if shift else 0.0 for _ in range(TOKENS)]
        found[str(key)] = record(nll, kls, draw.randint(30, 60))
    return found


RECORDS = {"baseline": made_up(1, 0.0), "method": made_up(2, 0.08)}


def mean_nll(label: str) -> list[float]:
    return [RECORDS[label][str(k)]["nll"] / TOKENS for k in range(SAMPLES)]


def summary(records: dict[str, Any] = RECORDS) -> dict[str, Summary]:
    return Perplexity().summarise(records, "baseline")


def student(values: list[float]) -> tuple[float, float]:
    interval = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def test_perplexity_and_its_interval() -> None:
    fields, own = summary()["method"].fields, mean_nll("method")
    low, high = student(own)
    assert fields["avg_nll"] == pytest.approx(statistics.fmean(own), rel=1e-12)
    assert fields["perplexity"] == pytest.approx(math.exp(statistics.fmean(own)), rel=1e-12)
    assert fields["perplexity_low"] == pytest.approx(math.exp(low), rel=1e-9)
    assert fields["perplexity_high"] == pytest.approx(math.exp(high), rel=1e-9)
    assert (fields["samples"], fields["total_tokens"], fields["tokens_read_compressed"]) == (
        SAMPLES,
        SAMPLES * TOKENS,
        SAMPLES * (TOKENS - 1),
    )


def test_the_change_is_paired_sample_by_sample() -> None:
    fields = summary()["method"].fields
    base, own = mean_nll("baseline"), mean_nll("method")
    differences = [b - a for a, b in zip(base, own, strict=True)]
    change, (low, high) = statistics.fmean(differences), student(differences)
    assert fields["ppl_delta_pct"] == pytest.approx(100 * (math.exp(change) - 1), rel=1e-9)
    assert fields["delta_low"] == pytest.approx(100 * (math.exp(low) - 1), rel=1e-9)
    assert fields["delta_high"] == pytest.approx(100 * (math.exp(high) - 1), rel=1e-9)
    before, after = (math.exp(statistics.fmean(x)) for x in (base, own))
    assert fields["ppl_delta"] == pytest.approx(after - before, rel=1e-9)
    alone = summary()["method"].fields["perplexity_high"] - summary()["method"].fields["perplexity_low"]
    assert before * (fields["delta_high"] - fields["delta_low"]) / 100 < alone / 3  # pairing takes the text's own spread out


def test_divergence_agreement_and_calibration() -> None:
    fields, records = summary()["method"].fields, RECORDS["method"].values()
    assert fields["kl"] == pytest.approx(sum(r["kl"] for r in records) / (SAMPLES * TOKENS), rel=1e-12)
    low, high = student([r["kl"] / TOKENS for r in records])
    assert (fields["kl_low"], fields["kl_high"]) == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))
    assert fields["kl_max"] == max(r["kl_max"] for r in records)
    assert fields["top1"] == sum(r["agree"] for r in records) / (SAMPLES * TOKENS)
    draw = random.Random(2)
    kls: list[float] = []
    for _ in range(SAMPLES):
        draw.gauss(0.08, 0.05)
        kls += [draw.expovariate(10.0) for _ in range(TOKENS)]
        draw.randint(30, 60)
    for name, q in (("kl_p50", 0.5), ("kl_p90", 0.9), ("kl_p99", 0.99), ("kl_p999", 0.999)):
        assert fields[name] == pytest.approx(sorted(kls)[math.ceil(q * len(kls)) - 1], rel=0.011)
    gaps = [
        abs(SAMPLES * (TOKENS // 8) - SAMPLES * 0.25 * TOKENS / 2),
        abs(sum(r["agree"] // 2 for r in records) - SAMPLES * 0.9 * TOKENS / 2),
    ]
    assert fields["ece"] == pytest.approx(sum(gaps) / (SAMPLES * TOKENS), rel=1e-12)


def test_bytes_and_keys() -> None:
    fields = summary()["method"].fields
    assert (fields["stored_bytes"], fields["baseline_bytes"], fields["allocated_bytes"], fields["artefact_bytes"]) == (1000, 4000, 1024, 96)
    assert (fields["compression_factor"], fields["compression_ratio"], fields["compression_factor_end"]) == (4.0, 0.75, 2.5)
    assert fields["compression_stats"] == {
        "avg_compression_ratio": 0.75, "sparsity_percentage": 75.0, "total_keys_original": 512 * SAMPLES,
        "total_keys_kept": 128 * SAMPLES, "total_keys_discarded": 384 * SAMPLES,
    }  # fmt: skip


def test_the_baseline_is_compared_with_nothing() -> None:
    found = summary()["baseline"]
    assert not {"ppl_delta", "ppl_delta_pct", "delta_low", "delta_high", "kl", "top1"} & set(found.fields)
    assert {m.metric for m in found.measured} == {"perplexity", "ece", "stored_bytes", "compression_factor"}


@pytest.mark.parametrize("seed", range(4))
def test_samples_in_any_order_give_the_same(seed: int) -> None:
    order = [*range(SAMPLES)]
    random.Random(seed).shuffle(order)
    labels = list(RECORDS) if seed % 2 else list(RECORDS)[::-1]
    shuffled = {label: {str(k): RECORDS[label][str(k)] for k in order} for label in labels}
    assert summary(shuffled) == summary()


def test_one_sample_gives_no_interval_and_samples_that_both_have_are_compared() -> None:
    one = {label: {"3": of["3"]} for label, of in RECORDS.items()}
    fields = summary(one)["method"].fields
    assert fields["perplexity_low"] is fields["delta_low"] is fields["kl_high"] is None
    partial = {
        "baseline": {k: RECORDS["baseline"][k] for k in ("0", "1", "2")},
        "method": {k: RECORDS["method"][k] for k in ("1", "2", "5")},
    }
    both = {label: {k: RECORDS[label][k] for k in ("1", "2")} for label in RECORDS}
    for name in ("ppl_delta", "ppl_delta_pct", "delta_low", "delta_high"):
        assert summary(partial)["method"].fields[name] == summary(both)["method"].fields[name]


def test_nothing_shared_gives_no_change_and_an_enormous_loss_no_overflow() -> None:
    apart = {"baseline": {"0": RECORDS["baseline"]["0"]}, "method": {"1": RECORDS["method"]["1"]}}
    assert "ppl_delta" not in summary(apart)["method"].fields
    lost = {"baseline": RECORDS["baseline"], "method": {k: record(2000.0, [900.0], 0) for k in RECORDS["baseline"]}}
    assert math.isfinite(summary(lost)["method"].fields["perplexity"])


def test_measured_figures_carry_what_compare_needs() -> None:
    measured = {m.metric: m for m in summary()["method"].measured}
    assert {n: m.evidence for n, m in measured.items()} == {
        "perplexity": "paired", "kl_mean": "paired", "top1_agreement": "paired", "ece": "paired",
        "stored_bytes": "exact", "compression_factor": "exact",
    }  # fmt: skip
    assert measured["perplexity"].scale == "log"
    assert list(measured["perplexity"].samples.values()) == pytest.approx(mean_nll("method"))
    assert math.exp(statistics.fmean(measured["perplexity"].samples.values())) == pytest.approx(measured["perplexity"].value)


def repeat(batch: int, context: int, decode: float, *, warmup: bool = False, prefill: float = 2.0) -> dict[str, Any]:
    return {
        "batch": batch, "context": context, "warmup": warmup, "read_path": "reference",
        "prefill_s": prefill, "compress_s": 0.5, "decode_s": decode, "steps": 10,
    }  # fmt: skip


def timings() -> dict[str, dict[str, Any]]:
    found = {"batch=1,context=64/warmup=0": repeat(1, 64, 90.0, warmup=True, prefill=50.0)}
    found |= {f"batch=1,context=64/repeat={i}": repeat(1, 64, decode) for i, decode in enumerate((1.0, 4.0, 2.0))}
    return found | {f"batch=8,context=64/repeat={i}": repeat(8, 64, decode) for i, decode in enumerate((5.0, 3.0))}


def test_speed_is_the_median_without_warm_up() -> None:
    fields = Speed().summarise({"m": timings()}, None)["m"].fields
    assert {n: fields[n] for n in ("ttft_s", "prefill_s", "compress_s", "tpot_s", "tokens_per_s")} == {
        "ttft_s": 2.5, "prefill_s": 2.0, "compress_s": 0.5, "tpot_s": 0.2, "tokens_per_s": 5.0,
    }  # fmt: skip
    assert sorted(fields["timings"]["batch=1,context=64"]["tpot_s"]) == [0.1, 0.2, 0.4]
    assert sorted(fields["timings"]["batch=8,context=64"]["tokens_per_s"]) == [16.0, pytest.approx(80 / 3)]


def test_speed_measures_every_point_by_its_repeats() -> None:
    measured = {(m.metric, m.point): m for m in Speed().summarise({"m": timings()}, None)["m"].measured}
    assert len(measured) == 10
    assert {m.evidence for m in measured.values()} == {"noisy"}
    assert measured["tokens_per_s", "batch=8,context=64"].better == "higher"
    assert measured["tpot_s", "batch=1,context=64"].value == 0.2
    assert len(measured["tpot_s", "batch=1,context=64"].samples) == 3


def test_speed_of_warm_up_alone_says_nothing() -> None:
    assert Speed().summarise({"m": {"k": repeat(1, 64, 1.0, warmup=True)}}, None)["m"] == Summary()


def full(batch: int) -> dict[str, Any]:
    """A record of the fused path with everything that is timed or weighed."""
    more = {
        "limit": 40.0, "energy_joules": 5.0, "flush_s": 0.25, "prepare_s": 1.5, "capture_s": 0.75,
        "stored_bytes": 3 * 2**20, "allocator_bytes": 2**19,
    }  # fmt: skip
    return repeat(batch, 64, 2.0) | more | {"read_path": "fused"}


def test_every_timing_has_its_unit_in_the_tables_of_one_point() -> None:
    rows = [dict(zip(t.headings, t.rows[0], strict=True)) for t in speed_tables.tables({"m": {"repeat=0": full(1)}}, None)]
    assert rows == [
        {
            "method": "m", "tokens/s": "5.0", "roofline %": "12.5", "limit tokens/s": "40.0", "J/token": "0.5000",
            "read path": "fused",
        },
        {
            "method": "m", "TTFT ms": "2500.0", "prefill ms": "2000.0", "compress ms": "500.0", "flush ms": "250.000", "prepare s": "1.50",
            "capture s": "0.75", "stored MiB": "3.00", "allocator MiB": "0.50",
        },
    ]  # fmt: skip


def test_what_changes_with_the_point_has_a_table_of_its_own_by_several() -> None:
    found = speed_tables.tables({"m": {f"batch={b}": full(b) for b in (1, 8)}}, None)
    assert [t.name for t in found] == ["tokens_per_s", "roofline", "energy", "ttft", "capture", "stored", "allocator"]


def test_speed_in_any_order_gives_the_same() -> None:
    turned = dict(reversed(timings().items()))
    assert Speed().summarise({"m": turned}, None) == Speed().summarise({"m": timings()}, None)


def weighed(batch: int, **seen: int) -> dict[str, Any]:
    return {
        "batch": batch, "context": 100, "ledger": {"keys": 600 * batch, "values": 400 * batch}, "slack_bytes": 0, "artefacts": {},
        "stored_bytes": 1000 * batch, "allocated_bytes": 1200 * batch, "baseline_bytes": 4000 * batch, "bytes_per_token": 10.0,
        "per_layer": [1000 * batch], **seen,
    }  # fmt: skip


def test_memory_is_per_sequence_and_named_as_what_it_is() -> None:
    records = {"batch=2,context=100": weighed(2, resident_bytes=7777), "batch=8,context=100": weighed(8, resident_bytes=9999)}
    found = Memory().summarise({"m": records}, None)["m"]
    fields = found.fields
    assert (fields["stored_bytes"], fields["allocated_bytes"], fields["baseline_bytes"]) == (1000, 1200, 4000)
    assert (fields["compression_factor"], fields["compression_ratio"]) == (4.0, 0.75)
    assert (fields["memory_bytes"], fields["memory_name"]) == (7777, "resident")
    assert set(fields["memory_points"]) == set(records)
    measured = {(m.metric, m.point): (m.value, m.evidence) for m in found.measured}
    assert measured == {
        (metric, f"batch={b},context=100"): value
        for b, resident in ((2, 7777), (8, 9999))
        for metric, value in (
            ("memory_stored_bytes", (1000 * b, "exact")), ("bytes_per_token", (10.0, "exact")), ("resident_bytes", (resident, "noisy")),
        )
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "name", "value"),
    [
        ({"gpu_used_bytes": 5, "allocator_peak_bytes": 3, "allocator_now_bytes": 2}, "GPU (NVML)", 5),
        ({"gpu_used_bytes": None, "allocator_peak_bytes": 3, "allocator_now_bytes": 2}, "allocator peak", 3),
        ({}, None, None),
    ],
)
def test_memory_takes_the_most_honest_figure_there_is(seen: dict[str, Any], name: str | None, value: int | None) -> None:
    fields = Memory().summarise({"m": {"k": weighed(1, **seen)}}, None)["m"].fields
    assert (fields["memory_name"], fields["memory_bytes"]) == (name, value)


@pytest.mark.parametrize("evaluator", [Perplexity(), Speed(), Memory()])
def test_no_records_are_no_error(evaluator: Any) -> None:
    assert all(not s.fields and not s.measured for s in evaluator.summarise({"m": {}}, "baseline").values())
    assert evaluator.summarise({}, None) == {}


def test_units() -> None:
    spec = RunSpec(samples=6, batch_size=2, context=64)
    assert [u.index for u in Perplexity().units(spec, ["baseline", "m"])] == [0, 1, 2]
    assert len(Speed(batch="1+8", context="64+128", repeats=3, warmup=1).units(spec, ["m"])) == 16
    assert len(Memory(batch="1+8").units(spec, ["m"])) == 2
    assert points(spec, "1+8", "") == [Point(1, 64), Point(8, 64)]
    assert {u.steps for u in Perplexity().units(spec, ["baseline", "m"])} == {3}
