"""The table's columns: what they show, how wide they are, and which are left out first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kvbench.formats import MIB, NONE, TIMES, Write, fixed, interval, is_symmetric, shorten, signed
from kvbench.metrics import factors
from kvbench.metrics.apart import contenders, is_better
from kvbench.metrics.measured import NOTHING_YET
from kvbench.metrics.row import Row

Best = Literal["lowest", "highest"]
GAP = 2
_MEMORY_TITLES = {"GPU": "GPU MiB", "allocator": "PyT MiB", "resident": "RSS MiB"}
OTHER_PATH = "*"
"""Behind a speed that was timed by another read path than the baseline's; the details panel says which."""
METHOD_WIDTH = (14, 24)
PROGRESS_WIDTH = (5, 22)
_SOURCES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("perplexity", "delta", "kl", "top1"), ("perplexity",)),
    **dict.fromkeys(("factor", "stored"), ("perplexity", "memory")),
    **dict.fromkeys(("speed", "ttft"), ("speed",)),
    "memory": ("memory",),
}
"""Column → the evaluators that always fill it; others may."""
HEADLINE_WIDTH = 14
"""Cells of a headline's name at most."""


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
        metric: The measured figure whose samples tell two rows apart; empty where the values themselves do.
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
    metric: str = ""

    @property
    def subject(self) -> str:
        """The column that it belongs to: itself, or the one that it qualifies."""
        return self.key.removesuffix("_ci")


def _memory_title(rows: Sequence[Row]) -> str:
    """Which memory it is: each is named as what it is."""
    names = {r.memory_name or "" for r in rows}
    return next((title for name, title in _MEMORY_TITLES.items() if any(n.startswith(name) for n in names)), "RAM MiB")


def _column(
    key: str, title: str, width: int, rank: int, value: Callable[[Row], float | None], decimals: int, meaning: str,
    best: Best | None = None, unit: str = "", write: Write = fixed, metric: str = "",
) -> Column:  # fmt: skip
    """A column of figures, with ``unit`` behind each."""

    def text(row: Row) -> str:
        found = value(row)
        return NONE if found is None else write(found, decimals, width - len(unit)) + unit

    return Column(key, title, width, rank, value, text, best, meaning, metric=metric)


Ends = Callable[[Row], tuple[float | None, float | None, float | None]]
"""A figure and the ends of its interval."""


def _interval(of: str, rank: int, rows: Sequence[Row], ends: Ends, write: Write = fixed) -> Column:
    """A 95 % interval beside its figure: half of it, or both ends where it is not symmetric."""

    def text(row: Row) -> str:
        value, low, high = ends(row)
        if value is None or low is None or high is None:
            return ""
        if is_symmetric(value, low, high):
            return f"±{fixed((high - low) / 2, 2, 5)}"
        return interval(low, high, 2, 5, write)

    width = max([len(text(row)) for row in rows] + [6])
    return Column(f"{of}_ci", "95 %", width, rank, lambda _: None, text, meaning="its 95 % interval; ± is half of it", beside=True)


def _over(value: float | None, divisor: float) -> float | None:
    return None if value is None else value / divisor


def _headlines(rows: Sequence[Row]) -> list[Column]:
    """One column a main score, in the order in which the evaluators of the run have it."""
    names = dict.fromkeys(name for row in rows for name in row.headline)
    return [_headline(name) for name in names]


def _headline(name: str) -> Column:
    key, title = f"headline:{name}", f"{shorten(name, HEADLINE_WIDTH)} %"
    meaning = f"main score of {name}, higher is better"
    return _column(key, title, max(6, len(title)), 3, lambda r: _over(r.headline.get(name), 0.01), 1, meaning, "highest", metric=key)


def _speed() -> Column:
    """Decode speed; a mark behind it says that the baseline was timed by another read path."""

    def text(row: Row) -> str:
        found = row.tokens_per_s
        return NONE if found is None else f"{fixed(found, 1, 6)}{OTHER_PATH}" if row.other_read_path else fixed(found, 1, 7)

    meaning = "decode speed at the first timed point"
    return Column("speed", "tok/s", 7, 7, lambda r: r.tokens_per_s, text, "highest", meaning, metric="tokens_per_s")


def _factor(rows: Sequence[Row]) -> Column:
    """How many times smaller; the heading says of what where the baseline is wider than 16 bit."""
    of = factors.wide(rows[0].cache_dtype) if rows else ""
    title = f"{TIMES} {of[0]}{of[-2:]}" if of else "factor"
    meaning = f"baseline bytes{f' in {of}' if of else ''} ÷ stored bytes: 4 is 4 times smaller"
    return _column("factor", title, 6, 2, lambda r: r.factor, 2, meaning, "highest", TIMES)


def columns(rows: Sequence[Row]) -> list[Column]:
    """All columns, left to right."""
    return [
        _column("perplexity", "PPL", 6, 3, lambda r: r.perplexity, 2, "perplexity over all scored tokens"),
        _interval("perplexity", 12, rows, lambda r: (r.perplexity, r.perplexity_low, r.perplexity_high)),
        _column("delta", "ΔPPL %", 8, 1, lambda r: r.delta_pct, 2, "change against the baseline, same tokens", "lowest", write=signed,
                metric="perplexity"),
        _interval("delta", 10, rows, lambda r: (r.delta_pct, r.delta_low, r.delta_high), signed),
        _column("kl", "KL", 6, 4, lambda r: r.kl, 4, "mean KL divergence to the baseline, nats per token", "lowest", metric="kl_mean"),
        _column("top1", "top1 %", 6, 6, lambda r: _over(r.top1, 0.01), 1, "tokens that keep the baseline's first choice", "highest",
                metric="top1_agreement"),
        *_headlines(rows),
        _factor(rows),
        _column("stored", "KV MiB", 6, 5, lambda r: _over(r.stored_bytes, MIB), 2, "bytes stored to answer the next query", "lowest"),
        _column("memory", _memory_title(rows), 7, 9, lambda r: _over(r.memory_bytes, MIB), 0, "GPU (NVML) or worker (RSS) at its peak"),
        _speed(),
        _column("ttft", "TTFT ms", 7, 8, lambda r: _over(r.ttft_s, 0.001), 1, "time to first token: prefill and compression", "lowest",
                metric="ttft_s"),
        Column("audit", "audit", 9, 11, lambda _: None, _standing, meaning="what the bytes that attention reads really do"),
    ]  # fmt: skip


def _standing(row: Row) -> str:
    """The audit's label; the longest in short, the details panel has it whole."""
    return "not yet" if row.audit == NOTHING_YET else row.audit or NONE


def columns_of(rows: Sequence[Row], evaluators: Collection[str] | None) -> list[Column]:
    """The columns that a run with these evaluators fills, or has filled; ``None`` is "not known yet"."""
    every = columns(rows)
    if evaluators is None:
        return every
    filled = {c.key for c in every if any(c.value(row) is not None for row in rows)}
    return [c for c in every if c.subject in filled or c.subject not in _SOURCES or set(_SOURCES[c.subject]) & set(evaluators)]


@dataclass(frozen=True)
class Plan:
    """Which columns fit a width, and how wide the two elastic ones become."""

    columns: tuple[Column, ...]
    method: int
    progress: int


def plan(rows: Sequence[Row], width: int, evaluators: Collection[str] | None = None) -> Plan:
    """Choose columns by rank, then give what is left to the method's name and the progress bar."""
    every = columns_of(rows, evaluators)
    longest = max([len(r.label) for r in rows], default=METHOD_WIDTH[0]) + 1
    method = max(METHOD_WIDTH[0], min(METHOD_WIDTH[1] if width >= 110 else 19, longest))
    room = width - 3 - method - GAP - PROGRESS_WIDTH[0] - 1
    chosen: set[str] = set()
    for column in sorted(every, key=lambda c: c.rank):
        need = column.width + (1 if column.beside else GAP)
        if need <= room and (not column.beside or column.subject in chosen):
            chosen.add(column.key)
            room -= need
    progress = min(PROGRESS_WIDTH[1], PROGRESS_WIDTH[0] + room)
    spare = PROGRESS_WIDTH[0] + room - progress
    wider = min(spare, 8)
    return Plan(tuple(c for c in every if c.key in chosen), method + wider, progress + spare - wider)


def best_labels(rows: Sequence[Row], column: Column) -> set[str]:
    """Which of the contenders hold the column's best figure, as it is printed, if it is shown to be better than the next; else none."""
    valued = [(v, r) for r in contenders(rows) if (v := column.value(r)) is not None]
    if column.best is None or len(valued) < 2:
        return set()
    valued.sort(key=lambda pair: pair[0], reverse=column.best == "highest")
    best, shown = valued[0][1], column.text(valued[0][1])
    others = [r for _, r in valued if column.text(r) != shown]
    if not others or not _is_shown(best, others[0], column.metric):
        return set()
    return {r.label for _, r in valued if column.text(r) == shown}


def _is_shown(best: Row, other: Row, metric: str) -> bool:
    """Whether ``best`` is shown to be better than the next; exact figures, and rows that hold no samples at all, go by value."""
    if not metric or not (best.measured or other.measured):
        return True
    a, b = best.measured.get(metric), other.measured.get(metric)
    return a is not None and b is not None and is_better(a, b)


def ordered(rows: Sequence[Row], column: Column | None, *, reverse: bool) -> list[Row]:
    """Best first by a column (the plan's order without one); failed ones and those without the figure come last."""
    if column is None:
        return list(reversed(rows)) if reverse else list(rows)
    found = [(v, r) for r in rows if r.status != "failed" and (v := column.value(r)) is not None]
    downwards = (column.best == "highest") != reverse
    found.sort(key=lambda pair: pair[0], reverse=downwards)
    return [r for _, r in found] + [r for r in rows if r.status == "failed" or column.value(r) is None]
