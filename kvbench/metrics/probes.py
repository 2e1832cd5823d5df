"""What the probes of ``capacity`` come to; pure, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvbench.figures import Figure, Table
from kvbench.formats import MIB, NONE, TIMES, fixed
from kvbench.metrics.measured import Measured, MethodRecords, Summary

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """One method's search.

    Attributes:
        find: ``batch`` or ``context``. value: The largest that fitted, 0 if none did. most, grain: Of the search.
        first_bad: The least that did not fit, or ``None``. fitted, failed: Their records. probes: How many there were.
        beside: The size that was fixed, ``context=2048``.
    """

    find: str
    value: int
    first_bad: int | None
    most: int
    grain: int
    fitted: Record | None
    failed: Record | None
    probes: int
    beside: str

    @property
    def is_exact(self) -> bool:
        """The next size was tried and did not fit; otherwise more than ``value`` may fit."""
        return self.first_bad is not None and self.first_bad - self.value <= self.grain

    @property
    def text(self) -> str:
        return f"{self.value:,}" if self.is_exact else f"≥ {self.value:,}"


def found_in(records: MethodRecords) -> Found | None:
    """The search that these records are of, as far as it is."""
    if not records:
        return None
    first = min(records.values(), key=lambda r: (r["batch"], r["context"]))
    find, other = first["find"], "context" if first["find"] == "batch" else "batch"
    good = max((r for r in records.values() if not r["out_of_memory"]), key=lambda r: r[find], default=None)
    bad = min((r for r in records.values() if r["out_of_memory"]), key=lambda r: r[find], default=None)
    return Found(
        find, good[find] if good else 0, bad[find] if bad else None, first["most"], first["grain"], good, bad, len(records),
        f"{other}={first[other]}",
    )  # fmt: skip


def summary(records: MethodRecords) -> Summary:
    """The size that fits; a measured figure only where the next one does not."""
    found = found_in(records)
    if found is None:
        return Summary()
    name = f"capacity_{found.find}"
    fields = {name: found.value, f"{name}_is_exact": found.is_exact, f"{name}_text": found.text, f"{name}_beside": found.beside}
    if not found.is_exact:
        return Summary(fields)
    unit = "sequences" if found.find == "batch" else "tokens"
    path = (found.fitted or {}).get("read_path", "reference")
    measured = Measured(
        name, found.value, unit, "noisy", "higher", found.beside, samples={"0": found.value}, read_path="" if path == "reference" else path
    )
    return Summary(fields, [measured])


def tables(records: Mapping[str, MethodRecords], baseline: str | None) -> list[Figure]:
    """Every method's largest size, beside the baseline's."""
    found = {label: one for label, of in records.items() if (one := found_in(of)) is not None}
    if not found:
        return []
    first = next(iter(found.values()))
    what = "Largest batch" if first.find == "batch" else "Longest context"
    base = found.get(baseline or "")
    headings = ["method", first.find, f"{TIMES} baseline", "stored MiB", "allocator MiB", "read path", "ended by"]
    rows = [
        [label, one.text, _ratio(one, base), _mib(one, "stored_bytes"), _mib(one, "allocator_bytes"), _fact(one, "read_path"), _end(one)]
        for label, one in found.items()
    ]
    title = f"{what} that fits at {first.beside.replace('=', ' ')}"
    return [Table("capacity", title, headings, rows, notes=_notes(found))]


def _notes(found: Mapping[str, Found]) -> list[str]:
    first = next(iter(found.values()))
    notes = [
        f"{sum(one.probes for one in found.values())} probes: a cache of random keys and values is filled and decoded from, then let go"
    ]
    if first.find == "context":
        notes.append(f"lengths in steps of {first.grain:,} tokens")
    if any(not one.is_exact for one in found.values()):
        notes.append("≥: the largest that was tried fits, and nothing is said of more")
    if any(one.failed and one.failed["limited_by"] == "budget" for one in found.values()):
        notes.append("budget: a probe that would have held more than was allowed was ended before it did")
    return notes


def _ratio(own: Found, base: Found | None) -> str:
    """Over the baseline's; a bound where its own is one, nothing where the baseline's is."""
    if base is None or not base.is_exact or not base.value:
        return NONE
    return f"{'' if own.is_exact else '≥ '}{fixed(own.value / base.value, 2)}{TIMES}"


def _mib(found: Found, name: str) -> str:
    value = (found.fitted or {}).get(name)
    return NONE if value is None else fixed(value / MIB, 1)


def _fact(found: Found, name: str) -> str:
    return str((found.fitted or {}).get(name) or NONE)


def _end(found: Found) -> str:
    """What the search met above the largest size that fits."""
    if found.failed is None:
        return "end of the search" if found.value >= found.most else NONE
    if found.failed["limited_by"] == "budget":
        return "budget"
    return "out of memory"
