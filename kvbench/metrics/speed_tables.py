"""Tables of what ``speed`` timed, by method and point; pure, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kvbench.figures import Figure, Table
from kvbench.formats import MIB, NONE, TIMES, fixed
from kvbench.metrics.measured import MethodRecords
from kvbench.metrics.speeds import OUT_OF_MEMORY, At, by_point, other_path

Found = Mapping[str, Mapping[tuple[int, int], At]]
"""Method → point → what was timed there."""


@dataclass(frozen=True)
class Column:
    """One metric.

    Attributes:
        name, heading, title: For keys, beside other metrics, and as a table of its own.
        cell: Text of a method at a point, with the baseline there, or ``None`` where there is none.
        alone: It has a table of its own where there are several points; otherwise the result alone has it there.
    """

    name: str
    heading: str
    title: str
    cell: Callable[[At, At | None], str | None]
    alone: bool = True


def tables(records: Mapping[str, MethodRecords], baseline: str | None) -> list[Figure]:
    """Decoding, then what comes before it and beside it: metrics as columns of one point, or a table each by several points."""
    found = {label: at for label, of in records.items() if (at := by_point(of))}
    places = sorted({place for at in found.values() for place in at})
    if not places:
        return []
    if len(places) == 1:
        made = [_of_one(found, baseline, group, places[0]) for group in GROUPS]
    else:
        made = [_by_point(found, baseline, column, places) for group in GROUPS for column in group.columns if column.alone]
    first, *others = made
    return [replace(first, notes=_notes(found, baseline)), *filter(_tells, others)]


def _tells(table: Table) -> bool:
    """Whether any cell has a figure."""
    return any(cell not in (NONE, OUT_OF_MEMORY) for row in table.rows for cell in row[table.left :])


def _of_one(found: Found, baseline: str | None, group: Group, place: tuple[int, int]) -> Table:
    """One point: a row a method, a column a metric; metrics that nobody has are left out."""
    reference = found.get(baseline or "", {}).get(place)
    columns = [c for c in group.columns if any(c.cell(at[place], reference) for at in found.values() if place in at)]
    rows = [[label, *(_cell(c, at.get(place), reference) for c in columns)] for label, at in found.items()]
    return Table(group.name, f"{group.title} at batch {place[0]:,}, context {place[1]:,}", ["method", *(c.heading for c in columns)], rows)


def _by_point(found: Found, baseline: str | None, column: Column, places: Sequence[tuple[int, int]]) -> Table:
    """One metric: a row a method, a column a point."""
    base = found.get(baseline or "", {})
    rows = [[label, *(_cell(column, at.get(place), base.get(place)) for place in places)] for label, at in found.items()]
    return Table(column.name, f"{column.title}, by batch {TIMES} context", ["method", *(f"{b:,}{TIMES}{c:,}" for b, c in places)], rows)


def _cell(column: Column, at: At | None, reference: At | None) -> str:
    if at is None:
        return NONE
    return OUT_OF_MEMORY if at.is_full else column.cell(at, reference) or NONE


def _speed(at: At, reference: At | None) -> str | None:
    """Tokens/s, with the path that read them where it is not the baseline's."""
    text, other = fixed(at.middle("tokens_per_s"), 1), other_path(at, reference)
    return f"{text} ({other})" if other else text


def _ratio(at: At, reference: At | None) -> str | None:
    """Over the baseline's tokens/s; none where another path was timed."""
    own, base = at.middle("tokens_per_s"), reference.middle("tokens_per_s") if reference else None
    if own is None or not base or other_path(at, reference):
        return None
    return f"{fixed(own / base, 2)}{TIMES}"


def _of(name: str, decimals: int, scale: float = 1.0) -> Callable[[At, At | None], str | None]:
    def cell(at: At, reference: At | None) -> str | None:
        value = at.middle(name)
        return None if value is None else fixed(value * scale, decimals)

    return cell


def _mib(name: str) -> Callable[[At, At | None], str | None]:
    def cell(at: At, reference: At | None) -> str | None:
        value = at.fact(name)
        return None if value is None else fixed(value / MIB, 2)

    return cell


@dataclass(frozen=True)
class Group:
    """Metrics that stand beside each other."""

    name: str
    title: str
    columns: Sequence[Column]


GROUPS = (
    Group("decode", "Greedy decoding", (
        Column("tokens_per_s", "tokens/s", "Tokens a second", _speed),
        Column("speedup", f"{TIMES} baseline", "Tokens a second over the baseline's", _ratio),
        Column("roofline", "roofline %", "Share of the byte roofline that is reached, in %", _of("roofline_fraction", 1, 100)),
        Column("roofline_tokens_per_s", "limit tokens/s", "Tokens a second that the bytes allow", _of("roofline_tokens_per_s", 1), False),
        Column("energy", "J/token", "Joules a token", _of("joules_per_token", 4)),
        Column("read_path", "read path", "How stored bytes are read", lambda at, reference: at.read_path, False),
    )),
    Group("beside", "Before and beside decoding", (
        Column("ttft", "TTFT ms", "Time to the first token, ms", _of("ttft_s", 1, 1000)),
        Column("prefill", "prefill ms", "Prefill with the method's statistics, ms", _of("prefill_s", 1, 1000), False),
        Column("compress", "compress ms", "Compression of the prompt, ms", _of("compress_s", 1, 1000), False),
        Column("flush", "flush ms", "Packing of one full group, ms", _of("flush_s", 3, 1000), False),
        Column("prepare", "prepare s", "Laying out, compiling and warming up, s", _of("prepare_s", 2), False),
        Column("capture", "capture s", "Recording the step's graph, s", _of("capture_s", 2)),
        Column("stored", "stored MiB", "Stored bytes by the ledger, all sequences, MiB", _mib("stored_bytes")),
        Column("allocator", "allocator MiB", "What the allocator holds for cache and decoder, MiB", _mib("allocator_bytes")),
    )),
)  # fmt: skip


def _notes(found: Found, baseline: str | None) -> list[str]:
    """What a reader must know of the figures."""
    every = [at for places in found.values() for at in places.values() if not at.is_full]
    base = found.get(baseline or "", {})
    notes = (
        [f"medians of {_count(every)} repeats; the widest spread of tokens/s, (most - least) / median, is {_widest(every):.1%}"]
        if every
        else []
    )
    bandwidth = [at.fact("bandwidth") for at in every if at.fact("bandwidth")]
    if bandwidth:
        speed = f"{sorted(bandwidth)[len(bandwidth) // 2] / 1e9:,.1f} GB/s"
        notes.append(
            f"roofline: weights (without the embedding table) and stored bytes read once a step, at the {speed} of a copy measured here"
        )
    if len(paths := {at.read_path for at in every}) == 1:
        notes.append(f"read path: {paths.pop()}")
    if any(other_path(at, base.get((at.batch, at.context))) for at in every):
        notes.append("(reference), (fused): timed by another read path than the baseline's, so that no ratio is formed")
    if any(at.values("joules_per_token") for at in every):
        notes.append("energy: the GPU's own counter over the timed steps, mean of the repeats; it moves about every 0.1 s, so raise steps")
    reasons = {label: str(at.fact("reason")) for label, places in found.items() for at in places.values() if _needs_reason(at)}
    return [*notes, *(f"{label}: {reason}" for label, reason in reasons.items())]


def _needs_reason(at: At) -> bool:
    """A GPU could have been read otherwise; that a CPU cannot is known."""
    return not at.is_full and at.fact("reason") not in (None, "", "no GPU", "asked for")


def _count(every: Sequence[At]) -> str:
    counts = sorted({len(at.repeats) for at in every})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _widest(every: Sequence[At]) -> float:
    spreads = [(max(v) - min(v)) / (at.middle("tokens_per_s") or 1.0) for at in every if (v := at.values("tokens_per_s"))]
    return max(spreads, default=0.0)
