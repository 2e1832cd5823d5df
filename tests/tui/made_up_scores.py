"""A made-up run of evaluators with figures of their own: a needle test, tasks, and a look into the layers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from made_up_run import BASELINE_BYTES, FIGURES, LAYERS, START

from kvbench.engine.journal import EVENTS, SCHEMA
from kvbench.evaluators.base import Evaluator, MethodRecords, Summary
from kvbench.figures import Figure, Grid, Table
from kvbench.record import events as ev
from kvbench.spec import CorpusSpec, EvaluatorSpec, MethodSpec, ModelSpec, RunSpec, Unit

LENGTHS, DEPTHS = ("512", "1024", "2048", "4096", "8192"), ("0 %", "25 %", "50 %", "75 %", "100 %")
HEADS = 9
TASKS = ("arc_challenge", "arc_easy", "gsm8k", "hellaswag", "mmlu", "piqa", "winogrande")
QUESTIONS = 50
OUTPUT = 'The capital is 巴黎 (Paris), \x1b[31mof course\x1b[0m;\nand it has been so since 987 "or" thereabouts, the model goes on'


@dataclass(frozen=True)
class MadeUp(Evaluator):
    """What the three have in common: nothing is planned or run."""

    def units(self, spec: RunSpec, methods: Sequence[str]) -> list[Unit]:
        return []

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        return {}


@dataclass(frozen=True)
class MadeUpNeedle(MadeUp):
    name: ClassVar[str] = "needle"

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        return {
            label: Summary({
                "headline": {"needle": sum(r["score"] for r in of.values()) / len(of)}, "compression_factor": FIGURES[label][3]
            })
            for label, of in records.items()
        }  # fmt: skip

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        notes = ("Share of the needle's words in the answer, greedy decoding; one needle in a haystack of essays.",)
        return [
            Grid(
                "recall", "words of the needle recalled", label, DEPTHS, LENGTHS,
                [[of.get(f"{length}/{depth}", {}).get("score") for length in LENGTHS] for depth in DEPTHS], "depth", "tokens", notes=notes,
            )
            for label, of in records.items()
        ]  # fmt: skip


@dataclass(frozen=True)
class MadeUpTasks(MadeUp):
    name: ClassVar[str] = "tasks"

    def summarise(self, records: Mapping[str, MethodRecords], baseline: str | None) -> dict[str, Summary]:
        return {
            label: Summary({
                "headline": {"tasks": sum(r["correct"] for r in of.values()) / (QUESTIONS * len(of))},
                "compression_factor": FIGURES[label][3], "stored_bytes": BASELINE_BYTES / FIGURES[label][3],
            })
            for label, of in records.items()
        }  # fmt: skip

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        rows = [[label, *(self._cell(of.get(task)) for task in TASKS)] for label, of in records.items()]
        worst = [[label, task, OUTPUT, "1"] for label in records for task in TASKS[:2]]
        notes = (
            f"Accuracy with its 95 % interval (Wilson) over {QUESTIONS} questions a task, zero-shot.",
            "* differs from the baseline on the same questions: McNemar's exact test, Holm's correction over methods and tasks.",
        )
        return [
            Table("tasks", "accuracy, % of the questions", ["method", *TASKS], rows, notes=notes),
            Table("worst", "answers furthest from the baseline's", ["method", "task", "answer", "first divergence"], worst, left=3),
        ]

    def _cell(self, record: Mapping[str, Any] | None) -> str:
        return "–" if record is None else f"{100 * record['correct'] / QUESTIONS:.1f} ± 13.1"


@dataclass(frozen=True)
class MadeUpLayers(MadeUp):
    name: ClassVar[str] = "layers"

    def figures(self, records: Mapping[str, MethodRecords], baseline: str | None, facts: Mapping[str, Any]) -> list[Figure]:
        rows, columns = [str(n) for n in range(LAYERS)], [str(n) for n in range(HEADS)]
        return [
            Grid(f"cosine_{part}", f"cosine of {part} to what was stored", label, rows, columns, of["all"][part], "layer", "head", 0.8, 1.0)
            for label, of in records.items()
            for part in ("K", "V")
        ]


MADE_UP = {e.name: e for e in (MadeUpNeedle(), MadeUpTasks(), MadeUpLayers())}


def spec() -> RunSpec:
    return RunSpec(
        preset="smollm2", model=ModelSpec(), methods=tuple(MethodSpec.parse(label) for label in FIGURES),
        evaluators=tuple(map(EvaluatorSpec, MADE_UP)), corpus=CorpusSpec("wikitext2"), samples=2, context=512, continuation=32,
    )  # fmt: skip


def events() -> Iterator[ev.Event]:
    """Needle cells column by column, then tasks, then layers; nothing fails."""
    plan = [*(("needle", n) for n in range(len(LENGTHS))), *(("tasks", n) for n in range(len(TASKS))), ("layers", 0)]
    labels, dice, at = list(FIGURES), random.Random(11), START
    units = [{"id": f"{e}/{n}", "evaluator": e, "index": n, "methods": labels, "steps": len(labels)} for e, n in plan]
    yield ev.RunStarted(at, asdict(spec()), units, labels, "0.1.0", SCHEMA)
    yield ev.ModelLoaded(at + 3, {"id": "embedded:smollm2", "dtype": "float32", "cache_dtype": "float32", "device": "cpu"}, 3.0)
    at += 4
    for label in labels:
        yield ev.AuditRecorded(at, label, "reference" if label == "baseline" else "real", {})
    for unit in units:
        yield ev.UnitStarted(at, unit["id"])
        for label in labels:
            yield ev.MethodStarted(at, unit["id"], label)
            at += 0.5
            for key, data in _measured(unit["evaluator"], unit["index"], label, dice):
                yield ev.RecordMade(at, unit["id"], unit["evaluator"], label, key, data)
        yield ev.UnitFinished(at, unit["id"], 0.5 * len(labels))
    yield ev.RunFinished(at + 0.1, "result.json", at - START)


def _measured(evaluator: str, index: int, label: str, dice: random.Random) -> list[tuple[str, dict[str, Any]]]:
    harm = FIGURES[label][1]
    if evaluator == "needle":
        scores = [1 - harm * (index + 1) * dice.uniform(0.1, 1.2) * (1 + n % 3) for n in range(len(DEPTHS))]
        return [(f"{LENGTHS[index]}/{depth}", {"score": max(0.0, score)}) for depth, score in zip(DEPTHS, scores, strict=True)]
    if evaluator == "tasks":
        return [(TASKS[index], {"correct": round(QUESTIONS * max(0.25, 0.62 - harm * dice.uniform(0.3, 0.9)))})]
    return [("all", {part: [[1 - harm * dice.uniform(0, 0.4) for _ in range(HEADS)] for _ in range(LAYERS)] for part in ("K", "V")})]


def write(folder: Path, *, share: float = 1.0) -> Path:
    """Write the first ``share`` of the journal into ``folder`` and give the folder back."""
    told = list(events())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVENTS).write_bytes(b"".join(map(ev.encode, told[: max(1, round(len(told) * share))])))
    return folder
