"""What evaluators are asked to measure at: batch × context points, lists of numbers, the first of the run's windows."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.spec import RunSpec


@dataclass(frozen=True)
class Point:
    """``batch`` sequences of ``context`` tokens."""

    batch: int
    context: int

    def __str__(self) -> str:
        return f"batch={self.batch},context={self.context}"


def parse_list(name: str, text: str) -> list[int]:
    """``1+8+32`` → [1, 8, 32].

    Raises:
        ValueError: an entry that is no positive whole number.
    """
    entries = text.split("+")
    if not all(e.strip().isdigit() and int(e) > 0 for e in entries):
        raise ValueError(f"{name}={text}; write whole numbers joined by +, for example {name}=1+8")
    return [int(e) for e in entries]


def batches(spec: RunSpec, samples: int) -> int:
    """Batches that hold the run's first ``samples`` windows; 0 is all of them."""
    return -(-min(samples or spec.samples, spec.samples) // spec.batch_size)


def points(spec: RunSpec, batch: str, context: str) -> list[Point]:
    """Every batch with every context; an empty context is the run's own."""
    contexts = parse_list("context", context) if context else [spec.context]
    return [Point(b, c) for b in parse_list("batch", batch) for c in contexts]
