"""Published figures beside a run's own, each with a verdict (``MEANINGS``, at length in ``docs/published.md``) and the reason for it.

The change is in percentage points for accuracies and scores, in % of the baseline for all else. A wide interval covers
much: ``why`` gives it with the verdict. Bytes have no interval, and are the same if they agree to the digit printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kvbench.compare.sides import side_of
from kvbench.figures import Table
from kvbench.formats import NONE, fixed, signed, with_interval
from kvbench.published import Entry, load
from kvbench.published.differences import differences, setting
from kvbench.published.ours import Ours, change_of, find, half_step, in_points
from kvbench.spec import BASELINE, MethodSpec

Verdict = Literal["reproduced", "differs", "other protocol", "not comparable"]
MEANINGS: Mapping[Verdict, str] = {
    "reproduced": "all the same, and our 95 % interval of the figure or of its change covers the published one",
    "differs": "all the same, and neither interval covers it",
    "other protocol": "the same method and metric under other conditions: compare only the changes, each against its own baseline",
    "not comparable": "the result has nothing to set against it",
}
VERDICTS = tuple(MEANINGS)
"""From the most to the least that may be said."""
SHOWN = 3
"""Published figures that a table shows of each row."""


@dataclass(frozen=True)
class Beside:
    """One published figure beside one row.

    Attributes:
        label: The row. ours: Its figure in the published unit, ``None`` where there is none.
        why: What decides the verdict, one line.
    """

    label: str
    entry: Entry
    verdict: Verdict
    why: str
    ours: Ours | None = None


def beside(result: Mapping[str, Any], entries: Sequence[Entry] | None = None) -> list[Beside]:
    """Every published figure of the methods that have a row, in the rows' order, the nearest parameters first.

    Args:
        result: As :func:`kvbench.record.results.load` gives it.
        entries: Published figures, kvbench's own by default.

    Raises:
        PublishedError: a file of them is broken. ResultError: a row of the result cannot be read.
    """
    side, held = side_of(result), load() if entries is None else entries
    baseline = side.methods.get(BASELINE)
    found: list[Beside] = []
    for row in result["results"]:
        label = str(row["method"])
        name = MethodSpec.parse(label).name
        own = [entry for entry in held if entry.spec is not None and entry.spec.name == name]
        ranked = [(_judged(entry, result, row, find(entry, side.methods[label], baseline)), entry) for entry in own]
        found += [one for one, _ in sorted(ranked, key=lambda pair: _rank(pair[0], pair[1], result, row))]
    return found


def _rank(one: Beside, entry: Entry, result: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[float, ...]:
    return VERDICTS.index(one.verdict), not entry.exact, setting(entry, result, row)[1], one.why.count(";")


def _judged(entry: Entry, result: Mapping[str, Any], row: Mapping[str, Any], ours: Ours | str) -> Beside:
    label = str(row["method"])
    if isinstance(ours, str):
        return Beside(label, entry, "not comparable", ours)
    if unlike := differences(entry, result, row, ours):
        return Beside(label, entry, "other protocol", "; ".join(unlike), ours)
    return Beside(label, entry, *_agreement(entry, ours), ours)


def _agreement(entry: Entry, ours: Ours) -> tuple[Verdict, str]:
    """Of two figures of the same thing."""
    published, step = float(entry.value), half_step(entry)
    if ours.is_exact:
        return ("reproduced" if abs(ours.value - published) <= step else "differs"), "counted from bytes, to the digit that is printed"
    said: list[str] = []
    covered = False
    changes = change_of(entry)
    asked = [("the figure", ours.low, ours.high, published, step)]
    asked += [("its change", ours.change_low, ours.change_high, *changes)] if changes else []
    for name, low, high, value, rounding in asked:
        if low is None or high is None:
            continue
        inside = low - rounding <= value <= high + rounding
        covered |= inside
        verb = "covers" if inside else "excludes"
        said.append(f"our 95 % interval of {name}, {fixed(low, 2)} to {fixed(high, 2)}, {verb} {fixed(value, 2)}")
    if not said:
        return "not comparable", "all the same, but our figure has no interval: more samples are needed"
    what = f"{ours.metric} at {ours.point}" if ours.point else ours.metric
    return ("reproduced" if covered else "differs"), f"{what}: {'; '.join(said)}"


HEADINGS = ("method", "figure", "of", "verdict", "why", "source", "published", "change", "ours", "change (95 %)")


def table(result: Mapping[str, Any], entries: Sequence[Entry] | None = None, shown: int = SHOWN) -> Table:
    """The same as a table: of each row at most ``shown`` figures, at most one of them not comparable; sources are in the notes.

    Raises:
        PublishedError, ResultError: as :func:`beside`.
    """
    every = beside(result, entries)
    held = [one for label in dict.fromkeys(one.label for one in every) for one in _nearest([o for o in every if o.label == label], shown)]
    sources = {remark: f"[{number}]" for number, remark in enumerate(dict.fromkeys(_remark(one.entry) for one in held), 1)}
    rows = [_cells(one, sources[_remark(one.entry)]) for one in held]
    return Table(
        "published",
        "Published figures beside ours",
        HEADINGS,
        rows,
        left=6,
        notes=_notes(held, sources, len(every) - len(held)),
        factors=any(one.entry.unit == "×" for one in held),
    )


def _nearest(found: Sequence[Beside], shown: int) -> list[Beside]:
    """The first of one row's, which stand in order; what cannot be compared is worth one line."""
    told = [one for one in found if one.verdict != "not comparable"]
    return [*told, *[one for one in found if one.verdict == "not comparable"][:1]][:shown]


def _remark(entry: Entry) -> str:
    return entry.cited + (f"; note: {entry.note}" if entry.note else "")


def _cells(one: Beside, source: str) -> tuple[str, ...]:
    entry, ours = one.entry, one.ours
    published = _from(entry, None if entry.baseline is None else str(entry.baseline), str(entry.value))
    theirs = change_of(entry)
    words = (one.label, entry.figure, f"{entry.model}, {entry.setting}", one.verdict, one.why, source)
    change = _changed(entry, theirs[0]) if theirs else NONE
    if ours is None:
        return *words, published, change, NONE, NONE
    own = _from(entry, None if ours.baseline is None or ours.is_exact else fixed(ours.baseline, 2), fixed(ours.value, 2))
    return *words, published, change, own, _own_change(entry, ours)


def _from(entry: Entry, baseline: str | None, value: str) -> str:
    """``13.50 → 12.74 %``; "times better" has the baseline in it."""
    unit = {"1": "", "×": "×"}.get(entry.unit, f" {entry.unit}")
    return (f"{baseline} → " if baseline is not None and unit != "×" else "") + value + unit


def _changed(entry: Entry, change: float) -> str:
    return signed(change, 2) + (" pp" if in_points(entry) else " %")


def _own_change(entry: Entry, ours: Ours) -> str:
    if ours.change is None:
        return NONE
    return with_interval(_changed(entry, ours.change), ours.change_low, ours.change_high, 2)


def _notes(held: Sequence[Beside], sources: Mapping[str, str], left_out: int) -> list[str]:
    said = [f"{verdict}: {MEANINGS[verdict]}" for verdict in VERDICTS if any(one.verdict == verdict for one in held)]
    if held:
        said.append("a → b: without and with compression, each by its own source; pp: percentage points")
    said += [f"{number} {remark}" for remark, number in sources.items()]
    if left_out:
        said.append(f"{left_out} more published figures of these methods, further from these rows or not comparable, are left out")
    return said
