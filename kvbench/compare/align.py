"""Which figures stand opposite each other, and whether they may be compared at all.

What a figure depends on decides what must agree:

=========  ==================================================================================================
evidence   must agree
=========  ==================================================================================================
paired     weights, text (token hash) and its windows, protocol, context, continuation, and chunk size when streaming:
           the same model reads the same tokens in the same way
exact      bytes and their ratios: model shape, cache number format, protocol, context, continuation. Text and weights
           need not agree, since bytes follow from shapes; where they differ and the bytes do too, a note says that
           a budget that depends on the text may be why. Any other exact figure is about the text: as ``paired``
noisy      model shape, protocol (and chunk size) and context: times and sizes do not depend on what the words are
=========  ==================================================================================================

Runs of more and fewer samples share their first windows, so there the text's and the tokenizer's hash stand in for the tokens'.
A length that the figure's own point names (``batch=1,context=512``) is not asked of the run. A fact that one file
records and the other does not counts as different; number formats and devices differ with a warning only. A method
that the audit found to be a no-op is compared in nothing: its figures are those of the uncompressed cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kvbench.compare.sides import MethodResult, Side
from kvbench.metrics.measured import Measured

TEXT = ("weights", "text", "windows")
READING = ("protocol", "chunk_size", "context", "continuation")
SIZE = ("shape", "cache dtype")
BYTE_METRICS = frozenset({"compression_factor", "compression_ratio"})


@dataclass(frozen=True)
class Pair:
    """One metric of one method at one point on both sides; ``refusal`` says why it cannot be compared."""

    method: str
    metric: str
    point: str
    a: Measured | None
    b: Measured | None
    refusal: str | None = None
    note: str = ""
    audit_a: str | None = None
    audit_b: str | None = None

    @property
    def kind(self) -> Measured:
        """The side that says how the metric is read (its unit, evidence and better direction)."""
        found = self.a or self.b
        if found is None:
            raise ValueError(f"{self.method} {self.metric} was measured on neither side")
        return found


def pairs(a: Side, b: Side) -> list[Pair]:
    """Every figure of the methods that both files hold, metric by metric, in A's order."""
    found = [pair for label in a.methods if label in b.methods for pair in _of_method(a, b, label)]
    order = {metric: place for place, metric in enumerate(dict.fromkeys(pair.metric for pair in found))}
    return sorted(found, key=lambda pair: order[pair.metric])


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, with both; ``None`` where a side has none."""
    return {key: (a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)}


def _of_method(a: Side, b: Side, label: str) -> Iterator[Pair]:
    left, right = a.methods[label], b.methods[label]
    for metric, point in dict.fromkeys([*left.measured, *right.measured]):
        one, other = left.measured.get((metric, point)), right.measured.get((metric, point))
        pair = Pair(label, metric, point, one, other, audit_a=left.audit, audit_b=right.audit)
        refusal = _missing("A", one, left) or _missing("B", other, right) or _unread(pair) or _unlike(pair) or _refusal(a, b, pair)
        yield replace(pair, refusal=refusal, note="" if refusal else _note(a, b, pair))


def _missing(side: str, found: Measured | None, row: MethodResult) -> str | None:
    if found is not None and found.value is not None:
        return None
    if row.status == "failed":
        return f"failed in {side}" + (f": {row.error}" if row.error else "")
    return f"not measured in {side}"


def _unread(pair: Pair) -> str | None:
    """Figures of a method that attention never read are the uncompressed cache's own: nothing to set them against."""
    sides = [mark for mark, label in (("A", pair.audit_a), ("B", pair.audit_b)) if label == "no-op"]
    return f"no-op in {' and '.join(sides)}: attention does not read what it stores" if sides else None


def _unlike(pair: Pair) -> str | None:
    """The two files read the metric differently (another version's unit or evidence), or stored bytes by another path."""
    for name in ("unit", "evidence", "scale", "better"):
        one, other = getattr(pair.a, name), getattr(pair.b, name)
        if one != other:
            return f"{name} {one} in A, {other} in B"
    if pair.a is not None and pair.b is not None and pair.a.read_path != pair.b.read_path:
        return f"read path {pair.a.read_path or 'reference'} in A, {pair.b.read_path or 'reference'} in B"
    return None


def _refusal(a: Side, b: Side, pair: Pair) -> str | None:
    for fact in _needs(pair.kind):
        one, other = a.facts[fact], b.facts[fact]
        if one != other and f"{fact}=" not in pair.point and not (fact == "text" and _same_source(a, b)):
            return f"other {fact}: {_brief(one)} in A, {_brief(other)} in B"
    return None


def _same_source(a: Side, b: Side) -> bool:
    """The token hash covers all samples; runs of more and fewer of them still share windows if text and tokenizer agree."""
    known = all(a.facts["source"]) and a.settings["samples"] != b.settings["samples"]
    return known and a.facts["source"] == b.facts["source"]


def _needs(kind: Measured) -> tuple[str, ...]:
    if kind.evidence == "noisy":
        return ("shape", "protocol", "chunk_size", "context")
    if is_bytes(kind):
        return (*SIZE, *READING)
    return (*TEXT, *READING)


def is_bytes(kind: Measured) -> bool:
    """Counted from storages, and so decided by shapes and not by the text."""
    return kind.evidence == "exact" and (kind.unit.startswith("bytes") or kind.metric in BYTE_METRICS)


def _note(a: Side, b: Side, pair: Pair) -> str:
    if not is_bytes(pair.kind) or pair.a is None or pair.b is None or pair.a.value == pair.b.value:
        return ""
    other = [fact for fact in ("text", "weights") if a.facts[fact] != b.facts[fact]]
    return f"other {' and '.join(other)}: a budget that depends on it changes bytes" if other else ""


def _brief(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join("?" if part is None else _in_a_line(part) for part in value)
    return "not recorded" if value is None else _in_a_line(value)[:12]


def _in_a_line(value: Any) -> str:
    """As text in a sentence or a cell: what documents are joined by may be line breaks, which are written out."""
    return str(value).replace("\n", "\\n")
