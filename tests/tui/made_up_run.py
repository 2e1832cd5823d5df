"""A made-up run with believable figures: the same journal each time, whole or cut at any share."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvbench.engine.journal import EVENTS, SCHEMA
from kvbench.record import events as ev
from kvbench.spec import CorpusSpec, EvaluatorSpec, MethodSpec, ModelSpec, RunSpec

START = 1_767_225_600.0
SAMPLES, CONTEXT, CONTINUATION, ROUNDS = 8, 512, 256, 4
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
OUT_OF_MEMORY = "out of memory: 3.1 GiB more were asked for, 1.2 GiB are free (cpu)"


def spec() -> RunSpec:
    return RunSpec(
        preset="smollm2", model=ModelSpec(), methods=tuple(MethodSpec.parse(label) for label in FIGURES),
        evaluators=tuple(map(EvaluatorSpec, ("perplexity", "speed", "memory"))), corpus=CorpusSpec("wikitext2"),
        samples=SAMPLES, context=CONTEXT, continuation=CONTINUATION,
    )  # fmt: skip


def units() -> list[dict[str, Any]]:
    labels = list(FIGURES)
    plan = [("audit", 1), ("perplexity", SAMPLES), ("speed", ROUNDS), ("memory", 1)]
    return [{"id": f"{e}/{i}", "evaluator": e, "index": i, "methods": labels, "steps": len(labels)} for e, n in plan for i in range(n)]


def quality(label: str, sample: int, dice: random.Random) -> dict[str, Any]:
    rise, kl, top1, factor, *_ = FIGURES[label]
    text = 2.85 + 0.16 * random.Random(sample).uniform(-1, 1)
    nll = text + rise * dice.uniform(0.75, 1.25)
    agree = round(CONTINUATION * min(1.0, top1 * (dice.uniform(0.99, 1.01) if rise else 1.0)))
    bytes_of = {"stored_bytes": BASELINE_BYTES / factor, "allocated_bytes": BASELINE_BYTES / factor, "baseline_bytes": BASELINE_BYTES}
    ends = {"stored_bytes_end": BASELINE_BYTES * 1.5 / factor, "baseline_bytes_end": BASELINE_BYTES * 1.5}
    bins = {"ece_count": [0] * 14 + [CONTINUATION], "ece_confidence": [0.0] * 14 + [CONTINUATION * 0.95], "ece_correct": [0] * 14 + [agree]}
    return {
        "tokens": CONTINUATION, "nll": CONTINUATION * nll, "kl": CONTINUATION * kl * dice.uniform(0.8, 1.2), "kl_max": kl * 9,
        "kl_hist": {"800": CONTINUATION}, "agree": agree, **bins, "tokens_read_compressed": CONTINUATION - 1, **bytes_of, **ends,
        "artefact_bytes": 0, "keys_held": CONTEXT * LAYERS * KV_HEADS / 2, "keys_total": CONTEXT * LAYERS * KV_HEADS, "seconds": 0.8,
    }  # fmt: skip


def speed(label: str, repeat: int, dice: random.Random) -> dict[str, Any]:
    rate, ttft = FIGURES[label][4:6]
    compress = max(0.0, (ttft - 812.0) / 1000)
    return {
        "batch": 1, "context": CONTEXT, "warmup": repeat < 0, "read_path": "reference", "prefill_s": 0.812, "compress_s": compress,
        "decode_s": 16 / (rate * dice.uniform(0.99, 1.01)), "steps": 16,
    }  # fmt: skip


def memory(label: str, gpu: bool) -> dict[str, Any]:
    factor, items = FIGURES[label][3], FIGURES[label][6]
    stored = BASELINE_BYTES / factor
    tilt = 0.5 if factor > 4 else 0.0
    shape = [1 + tilt * (0.5 - layer / (LAYERS - 1)) for layer in range(LAYERS)]
    seen = {"gpu_used_bytes": round(9400 * MIB + stored)} if gpu else {"resident_bytes": round(1180 * MIB + stored * 2)}
    return {
        "batch": 1, "context": CONTEXT, "ledger": {name: round(stored * share) for name, share in items.items()}, "slack_bytes": 0,
        "artefacts": {}, "stored_bytes": stored, "allocated_bytes": stored, "baseline_bytes": BASELINE_BYTES,
        "bytes_per_token": stored / CONTEXT, "per_layer": [round(stored / LAYERS * s) for s in shape], **seen,
    }  # fmt: skip


def audit(label: str, masked: str | None) -> tuple[str, dict[str, Any]]:
    share = 1 / FIGURES[label][3] if label != masked else 1.0
    checks = {
        "ledger equals storages": {"passed": True, "figure": 0.0, "detail": "bytes held and not counted"},
        "no copy survives": {"passed": True, "figure": 0.0, "detail": "bytes of other K/V-sized tensors"},
        "canary": {"passed": True, "figure": 3.4821, "detail": "largest change of the hidden states, storage corrupted"},
        "fewer bytes": {"passed": share < 1, "figure": share, "detail": f"stores {share:.1%} of the baseline's bytes at 512 tokens"},
    }
    if label == "baseline":
        checks["identity"] = {"passed": True, "figure": 2.1e-06, "detail": "largest logit gap to the model's own DynamicCache"}
        return "reference", checks
    return ("masked" if label == masked else "real"), checks


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
        "id": "embedded:smollm2", "dtype": "float32", "cache_dtype": "float32", "device": "cpu", "device_name": "cpu",
        "layers": LAYERS, "heads": 9, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "parameters": 134_515_008,
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
            at += {"audit": 0.35, "perplexity": 0.8, "speed": 0.6, "memory": 0.3}[unit["evaluator"]]
            if label == failing and unit["id"] == "perplexity/1":
                failed = True
                yield ev.MethodFailed(
                    at, unit["id"], label, "out of memory: 3.1 GiB more were asked for, 1.2 GiB are free (cpu)", "OutOfMemory"
                )
                continue
            yield _measured(at, unit, label, masked, gpu, dice)
            yield _telemetry(at, unit, dice, gpu)
        yield ev.UnitFinished(at, unit["id"], at - begun)
    yield ev.RunFinished(at + 0.2, "result.json", at - START)


def _calibration(at: float) -> Iterator[ev.Event]:
    for layer in range(0, 31, 5):
        yield ev.StageEntered(at + layer / 6, "calibrating v_lowrank", layer, 30)


def _measured(at: float, unit: dict[str, Any], label: str, masked: str | None, gpu: bool, dice: random.Random) -> ev.Event:
    evaluator, index = unit["evaluator"], unit["index"]
    point = f"batch=1,context={CONTEXT}"
    if evaluator == "audit":
        return ev.AuditRecorded(at, label, *audit(label, masked))
    if evaluator == "perplexity":
        return ev.RecordMade(at, unit["id"], evaluator, label, str(index), quality(label, index, dice))
    if evaluator == "speed":
        key = f"{point}/repeat={index - 1}" if index else f"{point}/warmup=0"
        return ev.RecordMade(at, unit["id"], evaluator, label, key, speed(label, index - 1, dice))
    return ev.RecordMade(at, unit["id"], evaluator, label, point, memory(label, gpu))


def _telemetry(at: float, unit: dict[str, Any], dice: random.Random, gpu: bool) -> ev.Event:
    base = {"audit": 900, "perplexity": 1180, "speed": 1090, "memory": 1240}[unit["evaluator"]]
    resident = round((base + dice.uniform(-18, 60)) * MIB)
    return ev.TelemetrySampled(
        at, resident, round((base * 9 + dice.uniform(0, 900)) * MIB) if gpu else None, 80 * 1024 * MIB if gpu else None
    )


def write(folder: Path, *, share: float = 1.0, masked: str | None = None, failing: str | None = FAILING, gpu: bool = False) -> Path:
    """Write the first ``share`` of the journal into ``folder`` and give the folder back."""
    told = list(events(masked=masked, failing=failing, gpu=gpu))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVENTS).write_bytes(b"".join(map(ev.encode, told[: max(1, round(len(told) * share))])))
    return folder
