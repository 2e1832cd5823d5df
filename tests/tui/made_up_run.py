"""A made-up run with believable figures: the same journal each time, whole or cut at any share."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvbench import events as ev
from kvbench.engine.journal import EVENTS, SCHEMA
from kvbench.spec import CorpusSpec, EvaluatorSpec, MethodSpec, ModelSpec, RunSpec

START = 1_767_225_600.0
SAMPLES, CONTEXT, CONTINUATION = 8, 512, 256
LAYERS, KV_HEADS, HEAD_DIM, ITEMSIZE = 30, 3, 64, 4
PER_TOKEN = 2 * LAYERS * KV_HEADS * HEAD_DIM * ITEMSIZE
BASELINE_BYTES = PER_TOKEN * CONTEXT
MIB = 1024 * 1024

# label → (rise of the NLL, KL, top-1 agreement, compression factor, tokens/s, TTFT in ms, ledger by share)
FIGURES: dict[str, tuple[float, float, float, float, float, float, dict[str, float]]] = {
    "baseline": (0.0, 0.0, 1.0, 1.0, 21.4, 812.0, {"keys": 0.5, "values": 0.5}),
    "random": (0.318, 0.4112, 0.672, 2.0, 22.6, 818.0, {"keys": 0.498, "values": 0.498, "kept positions": 0.004}),
    "expected_attention": (0.061, 0.0893, 0.861, 2.0, 22.5, 941.0, {"keys": 0.498, "values": 0.498, "kept positions": 0.004}),
    "hybrid_5x": (0.042, 0.0611, 0.884, 4.82, 17.9, 1003.0, {"key codes": 0.31, "value codes": 0.22, "guard": 0.33, "scales": 0.14}),
    "hybrid_8x": (0.128, 0.1703, 0.803, 7.61, 18.2, 1001.0, {"key codes": 0.30, "value codes": 0.30, "guard": 0.26, "scales": 0.14}),
    "hybrid_12x": (0.246, 0.3105, 0.735, 11.4, 18.4, 998.0, {"key codes": 0.28, "value codes": 0.28, "guard": 0.31, "scales": 0.13}),
    "int4": (0.0071, 0.0098, 0.953, 6.4, 18.8, 846.0, {"key codes": 0.4, "value codes": 0.4, "scales": 0.1, "zero points": 0.1}),
    "int8": (0.00012, 0.00021, 0.994, 3.56, 19.3, 839.0, {"key codes": 0.44, "value codes": 0.44, "scales": 0.12}),
    "kivi:bits=4": (0.0046, 0.0071, 0.962, 3.9, 18.1, 851.0, {"codes": 0.48, "scales": 0.12, "residual window": 0.4}),
    "kivi:bits=2": (0.0713, 0.0874, 0.858, 5.2, 18.3, 850.0, {"codes": 0.36, "scales": 0.14, "residual window": 0.5}),
    "knorm": (0.211, 0.2741, 0.742, 2.0, 22.7, 823.0, {"keys": 0.498, "values": 0.498, "kept positions": 0.004}),
    "observed_attention": (0.094, 0.1287, 0.834, 2.0, 22.4, 1377.0, {"keys": 0.498, "values": 0.498, "kept positions": 0.004}),
    "snapkv": (0.083, 0.1134, 0.842, 2.0, 22.5, 897.0, {"keys": 0.498, "values": 0.498, "kept positions": 0.004}),
    "streaming_llm": (0.152, 0.1968, 0.781, 2.0, 22.9, 815.0, {"keys": 0.5, "values": 0.5}),
    "tova": (0.101, 0.1392, 0.829, 2.0, 22.3, 869.0, {"keys": 0.498, "values": 0.498, "kept positions": 0.004}),
    "v_lowrank": (0.033, 0.0448, 0.902, 1.6, 20.2, 905.0, {"keys": 0.8, "value coefficients": 0.2}),
}  # fmt: skip
FAILING = "v_lowrank"


def spec() -> RunSpec:
    return RunSpec(
        preset="smollm2", model=ModelSpec(), methods=tuple(MethodSpec.parse(label) for label in FIGURES),
        evaluators=tuple(map(EvaluatorSpec, ("perplexity", "speed", "memory"))), corpus=CorpusSpec("wikitext2"),
        samples=SAMPLES, context=CONTEXT, continuation=CONTINUATION,
    )  # fmt: skip


def units() -> list[dict[str, Any]]:
    labels = list(FIGURES)
    plan = [("audit", 1), ("perplexity", SAMPLES), ("speed", 1), ("memory", 1)]
    return [{"id": f"{e}/{i}", "evaluator": e, "index": i, "methods": labels, "steps": len(labels)} for e, n in plan for i in range(n)]


def quality(label: str, sample: int, dice: random.Random) -> dict[str, Any]:
    rise, kl, top1, *_ = FIGURES[label]
    text = 2.85 + 0.16 * random.Random(sample).uniform(-1, 1)
    stored = BASELINE_BYTES / FIGURES[label][3]
    return {
        "tokens": CONTINUATION, "nll": CONTINUATION * (text + rise * dice.uniform(0.75, 1.25)), "kl": CONTINUATION * kl * dice.uniform(0.8, 1.2),
        "kl_hist": {}, "agree": round(CONTINUATION * min(1.0, top1 * (dice.uniform(0.99, 1.01) if rise else 1.0))),
        "stored_bytes": round(stored), "baseline_bytes": BASELINE_BYTES,
    }  # fmt: skip


def speed(label: str, dice: random.Random) -> dict[str, Any]:
    _, _, _, _, rate, ttft, _ = FIGURES[label]
    return {"tokens_per_s": rate * dice.uniform(0.99, 1.01), "ttft_s": ttft / 1000}


def memory(label: str) -> dict[str, Any]:
    factor, items = FIGURES[label][3], FIGURES[label][6]
    stored = BASELINE_BYTES / factor
    tilt = 0.0 if factor in (1.0, 2.0) or "int" in label else 0.5
    shape = [1 + tilt * (0.5 - layer / (LAYERS - 1)) for layer in range(LAYERS)]
    return {
        "ledger": {name: round(stored * share) for name, share in items.items()},
        "per_layer": [round(stored / LAYERS * s) for s in shape],
        "memory_bytes": round(1180 * MIB + stored * 2), "memory_name": "resident",
    }  # fmt: skip


def audit(label: str) -> tuple[str, dict[str, Any]]:
    kind = {"baseline": "no-op", "knorm": "real"}.get(label, "real")
    checks = {
        "ledger": {"passed": True, "figure": 0, "detail": "bytes beyond the storages held"},
        "leftovers": {"passed": True, "figure": 0, "detail": "other K/V-sized tensors"},
        "canary": {"passed": label != "baseline", "figure": 3.482, "detail": "largest logit change, corrupted"},
        "identity": {"passed": True, "figure": 2.1e-06, "detail": "largest logit gap to DynamicCache"},
    }
    return kind, {"checks": checks}


def events(*, masked: str | None = None, failing: str | None = FAILING, gpu: bool = False) -> Iterator[ev.Event]:
    """The whole run; ``masked`` names a method that the audit unmasks, ``failing`` one that runs out of memory."""
    dice, at = random.Random(7), START
    yield ev.RunStarted(at, asdict(spec()), units(), list(FIGURES), "0.1.0", SCHEMA)
    yield ev.WorkerStarted(at + 0.3, 4242, 1)
    for done in range(0, 92, 23):
        yield ev.StageEntered(at + 1 + done / 30, "downloading model", done * MIB, 92 * MIB)
    yield ev.StageEntered(at + 5, "loading model")
    yield ev.EnvironmentRecorded(at + 5.1, {"torch": "2.13.0", "transformers": "5.23.0", "python": "3.11"})
    model = {
        "id": "embedded:smollm2", "name": "SmolLM2-135M-Instruct", "dtype": "float32", "cache_dtype": "float32", "device": "cpu",
        "shape": {"layers": LAYERS, "heads": 9, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM}, "parameters": 134_515_008,
    }  # fmt: skip
    yield ev.ModelLoaded(at + 8.2, model, 3.1)
    yield ev.CorpusLoaded(at + 8.9, {"name": "wikitext2", "hash": "5f1b", "tokens": 287_645})
    yield ev.NoteWritten(at + 8.95, "baseline agrees with DynamicCache: largest logit gap 2.1e-06")
    at += 9
    yield from _calibration(at)
    at += 6
    failed = False
    for unit in units():
        yield ev.UnitStarted(at, unit["id"])
        begun = at
        for label in unit["methods"]:
            if failed and label == failing:
                continue
            yield ev.MethodStarted(at, unit["id"], label)
            at += {"audit": 0.35, "perplexity": 0.8, "speed": 1.9, "memory": 0.3}[unit["evaluator"]]
            if label == failing and unit["id"] == "perplexity/1":
                failed = True
                yield ev.MethodFailed(at, unit["id"], label, "out of memory: 3.1 GiB more were asked for, 1.2 GiB are free (cpu)", "OutOfMemory")
                continue
            yield _measured(at, unit, label, masked, dice)
            yield _telemetry(at, unit, dice, gpu)
        yield ev.UnitFinished(at, unit["id"], at - begun)
    yield ev.RunFinished(at + 0.2, "result.json", at - START)


def _calibration(at: float) -> Iterator[ev.Event]:
    for layer in range(0, 31, 5):
        yield ev.StageEntered(at + layer / 6, "calibrating v_lowrank", layer, 30)


def _measured(at: float, unit: dict[str, Any], label: str, masked: str | None, dice: random.Random) -> ev.Event:
    evaluator, key = unit["evaluator"], str(unit["index"])
    if evaluator == "audit":
        kind, checks = audit(label)
        return ev.AuditRecorded(at, label, "masked" if label == masked else kind, checks)
    data = quality(label, unit["index"], dice) if evaluator == "perplexity" else speed(label, dice) if evaluator == "speed" else memory(label)
    return ev.RecordMade(at, unit["id"], evaluator, label, key, data)


def _telemetry(at: float, unit: dict[str, Any], dice: random.Random, gpu: bool) -> ev.Event:
    base = {"audit": 900, "perplexity": 1180, "speed": 1090, "memory": 1240}[unit["evaluator"]]
    resident = round((base + dice.uniform(-18, 60)) * MIB)
    return ev.TelemetrySampled(at, resident, round((base * 9 + dice.uniform(0, 900)) * MIB) if gpu else None, 80 * 1024 * MIB if gpu else None)


def write(folder: Path, *, share: float = 1.0, masked: str | None = None, failing: str | None = FAILING, gpu: bool = False) -> Path:
    """Write the first ``share`` of the journal into ``folder`` and give the folder back."""
    told = list(events(masked=masked, failing=failing, gpu=gpu))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVENTS).write_bytes(b"".join(map(ev.encode, told[: max(1, round(len(told) * share))])))
    return folder
