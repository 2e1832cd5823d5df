"""The table's columns: what they show, how wide they are, and which are left out first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from kvbench.summary import Row
from kvbench.tui.facts import is_ranked
from kvbench.tui.format import MIB, NONE, fixed, signed

Best = Literal["lowest", "highest"]
GAP = 2
METHOD_WIDTH = (14, 24)
PROGRESS_WIDTH = (5, 22)


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        key: Name in the sort order.
        title: Heading, right-aligned like the figures.
        width: Cells.
        rank: The smaller, the later it is left out when the terminal is narrow.
        value: The figure that is sorted and compared.
        text: The figure as text, at most ``width`` cells.
        best: Which end is best, if either.
        meaning: One line for the help screen.
        beside: It qualifies the column before it (an interval): drawn closer and dimmer, never sorted by.
    """

    key: str
    title: str
    width: int
    rank: int
    value: Callable[[Row], float | None]
    text: Callable[[Row], str]
    best: Best | None = None
    meaning: str = ""
    beside: bool = False


def _half(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"±{fixed((high - low) / 2, 2, 5)}"


def _mib(value: float | None) -> float | None:
    return None if value is None else value / MIB


def _percent(value: float | None) -> float | None:
    return None if value is None else value * 100


def _memory_title(rows: Sequence[Row]) -> str:
    """Which memory it is: each is named as what it is."""
    names = {(r.memory_name or "").lower() for r in rows}
    return "GPU MiB" if any("nvml" in n or "gpu" in n for n in names) else "RSS MiB"


def columns(rows: Sequence[Row]) -> list[Column]:
    """All columns, left to right."""
    return [
        Column("perplexity", "PPL", 6, 3, lambda r: r.perplexity, lambda r: fixed(r.perplexity, 2, 6), None, "perplexity over all scored tokens"),
        Column("perplexity_ci", "95 %", 6, 12, lambda r: None, lambda r: _half(r.perplexity_low, r.perplexity_high), None,
               "half of its 95 % interval over samples", True),
        Column("delta", "ΔPPL %", 8, 1, lambda r: r.delta_pct, lambda r: signed(r.delta_pct, 2, 8), "lowest",
               "change against the baseline on the same tokens"),
        Column("delta_ci", "95 %", 6, 10, lambda r: None, lambda r: _half(r.delta_low, r.delta_high), None, "half of its paired 95 % interval", True),
        Column("kl", "KL", 6, 4, lambda r: r.kl, lambda r: fixed(r.kl, 4, 6), "lowest", "mean KL divergence to the baseline, nats per token"),
        Column("top1", "top1 %", 6, 6, lambda r: r.top1, lambda r: fixed(_percent(r.top1), 1, 6), "highest",
               "share of tokens at which the baseline's first choice is kept"),
        Column("factor", "factor", 6, 2, lambda r: r.factor, lambda r: NONE if r.factor is None else f"{fixed(r.factor, 2, 5)}×", "highest",
               "baseline bytes ÷ stored bytes: 4.00× is four times smaller"),
        Column("stored", "KV MiB", 6, 5, lambda r: r.stored_bytes, lambda r: fixed(_mib(r.stored_bytes), 2, 6), "lowest",
               "bytes that must be kept to answer the next query, per sequence"),
        Column("memory", _memory_title(rows), 7, 9, lambda r: r.memory_bytes, lambda r: fixed(_mib(r.memory_bytes), 0, 7), None,
               "peak memory: the GPU's by NVML, or the worker's resident (RSS)"),
        Column("speed", "tok/s", 7, 7, lambda r: r.tokens_per_s, lambda r: fixed(r.tokens_per_s, 1, 7), "highest", "decode speed at the first timed point"),
        Column("ttft", "TTFT ms", 7, 8, lambda r: r.ttft_s, lambda r: fixed(None if r.ttft_s is None else r.ttft_s * 1000, 1, 7), "lowest",
               "time to first token: prefill and compression"),
        Column("audit", "audit", 9, 11, lambda r: None, lambda r: r.audit or NONE, None,
               "real, simulated, masked or no-op: what the method does to the bytes that attention reads"),
    ]  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Which columns fit a width, and how wide the two elastic ones become."""

    columns: tuple[Column, ...]
    method: int
    progress: int


def plan(rows: Sequence[Row], width: int) -> Plan:
    """Choose columns by rank, then give what is left to the method's name and the progress bar."""
    every = columns(rows)
    longest = max([len(r.label) for r in rows], default=METHOD_WIDTH[0]) + 1
    method = max(METHOD_WIDTH[0], min(METHOD_WIDTH[1] if width >= 110 else 19, longest))
    room = width - 3 - method - GAP - PROGRESS_WIDTH[0] - 1
    chosen: set[str] = set()
    for column in sorted(every, key=lambda c: c.rank):
        need = column.width + (1 if column.beside else GAP)
        if need <= room and (not column.beside or column.key.removesuffix("_ci") in chosen):
            chosen.add(column.key)
            room -= need
    progress = min(PROGRESS_WIDTH[1], PROGRESS_WIDTH[0] + room)
    spare = PROGRESS_WIDTH[0] + room - progress
    return Plan(tuple(c for c in every if c.key in chosen), method + min(spare, 8), progress)


def best_labels(rows: Sequence[Row], column: Column) -> set[str]:
    """Which of the ranked rows hold the column's best figure, as it is printed; none if they are fewer than two."""
    valued = [(v, r) for r in rows if is_ranked(r) and (v := column.value(r)) is not None]
    if column.best is None or len(valued) < 2:
        return set()
    best = (min if column.best == "lowest" else max)(v for v, _ in valued)
    shown = next(column.text(r) for v, r in valued if v == best)
    return {r.label for _, r in valued if column.text(r) == shown}


def ordered(rows: Sequence[Row], column: Column | None, *, reverse: bool) -> list[Row]:
    """Best first by a column (the plan's order without one); rows without the figure come last."""
    if column is None:
        return list(reversed(rows)) if reverse else list(rows)
    found = [(v, r) for r in rows if (v := column.value(r)) is not None]
    downwards = (column.best == "highest") != reverse
    found.sort(key=lambda pair: pair[0], reverse=downwards)
    return [r for _, r in found] + [r for r in rows if column.value(r) is None]
