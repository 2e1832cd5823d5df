"""A run in one table: a row for each method, above it what was measured on what, below it what went wrong."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvbench.evaluators.registered import evaluators_of
from kvbench.figures import Table
from kvbench.formats import MIB, NONE, TIMES, duration, fixed, is_symmetric, signed, size, with_interval
from kvbench.metrics import factors
from kvbench.metrics.row import Row
from kvbench.models.shape import ITEM_SIZES, Shape, cache_bytes_per_token
from kvbench.record.state import RunState
from kvbench.spec.budgets import is_met

CELL = 6
"""Characters of a figure beyond which it gives up decimals."""
WITHIN = "~"
"""Behind a change that rounding alone could make."""
_LEAST = 0.001


@dataclass(frozen=True)
class Column:
    """One column: its heading, and a cell's text or ``None`` where the row has nothing."""

    heading: str
    cell: Callable[[Row], str | None]


def main_table(found: Sequence[Row]) -> Table:
    """Every method's row; columns that nothing filled are left out. What the audit says stands beside the method's name."""
    columns = [c for c in _columns(found) if any(c.cell(row) is not None for row in found)]
    body = [[c.cell(row) or NONE for c in columns] for row in found]
    notes = factors.notes(_cache_dtype(found)) if any(row.factor is not None for row in found) else []
    return Table("methods", "Every method, with 95 % intervals", [c.heading for c in columns], body, notes=notes)


def _cache_dtype(found: Sequence[Row]) -> str | None:
    """All rows of a run have one."""
    return found[0].cache_dtype if found else None


def _columns(found: Sequence[Row]) -> list[Column]:
    names = {row.memory_name for row in found if row.memory_name}
    return [
        Column("method", lambda r: r.label),
        Column("PPL\n± or [95 %]", _perplexity),
        Column("ΔPPL %\n[95 % interval]", _delta),
        Column("rounding\nPPL %", _rounding),
        Column("KL", lambda r: _text(r.kl, 4)),
        Column("top-1\n%", lambda r: _text(r.top1, 1, 100)),
        *(_headline(name) for name in dict.fromkeys(name for row in found for name in row.headline)),
        Column(factors.titled("factor", _cache_dtype(found)), lambda r: None if r.factor is None else f"{fixed(r.factor, 2)}{TIMES}"),
        Column("stored\nMiB", lambda r: _text(r.stored_bytes, 2, 1 / MIB)),
        Column("tokens\n/s", _speed),
        Column("TTFT\nms", lambda r: _text(r.ttft_s, 1, 1000)),
        Column(f"{names.pop() if len(names) == 1 else 'memory'}\nMiB", lambda r: _text(r.memory_bytes, 0, 1 / MIB)),
        Column("audit", _standing),
    ]


def _headline(name: str) -> Column:
    """An evaluator's main score, in %."""
    return Column(f"{name}\n%", lambda r: _text(r.headline.get(name), 1, 100))


def _text(value: float | None, decimals: int, scale: float = 1.0) -> str | None:
    return None if value is None else fixed(value * scale, decimals)


def _perplexity(row: Row) -> str | None:
    if row.perplexity is None:
        return None
    text, low, high = fixed(row.perplexity, 2, CELL), row.perplexity_low, row.perplexity_high
    if low is not None and high is not None and is_symmetric(row.perplexity, low, high):
        return f"{text} ± {fixed((high - low) / 2, 2, CELL - 1)}"
    return with_interval(text, low, high, 2, CELL, fixed)


def _delta(row: Row) -> str | None:
    if row.delta_pct is None:
        return None
    text = with_interval(signed(row.delta_pct, 2, CELL), row.delta_low, row.delta_high, 2, CELL)
    return f"{text} {WITHIN}" if row.within_rounding else text


def _rounding(row: Row) -> str | None:
    """What arithmetic alone does to perplexity, in %."""
    if row.rounding_pct is None:
        return None
    return fixed(row.rounding_pct, 3, CELL) if row.rounding_pct >= _LEAST or row.rounding_pct == 0 else f"<{_LEAST}"


def rounding_notes(found: Sequence[Row]) -> list[str]:
    """What the mark means, where a row has it."""
    if not any(row.within_rounding for row in found):
        return []
    return [f"{WITHIN}: smaller than what rounding alone does to perplexity when the same tokens go through in another shape"]


def sameness_notes(found: Sequence[Row]) -> list[str]:
    """Rows that are one row under several names, a line for each that they repeat."""
    names: dict[str, list[str]] = {}
    for row in found:
        if row.same_tokens_as is not None:
            names.setdefault(row.same_tokens_as, []).append(row.label)
    return [f"{', '.join(others)}: same tokens as {first} in every sample" for first, others in names.items()]


def _speed(row: Row) -> str | None:
    """Decode speed, with the path that read the bytes where the baseline was timed by another one."""
    text = _text(row.tokens_per_s, 1)
    return f"{text} ({row.other_read_path})" if text and row.other_read_path else text


def _standing(row: Row) -> str | None:
    """What the audit says of a row that is done; how far any other row is."""
    if row.status == "failed":
        return "failed"
    return row.audit if row.status == "done" else f"{row.audit or row.status} ({row.progress:.0%})"


def header(state: RunState) -> list[str]:
    """Model, text and numbers of the run, two lines; what is not known yet is left out."""
    spec, model = state.spec, state.model
    if spec is None:
        return []
    dtype = str(model.get("dtype") or spec.model.dtype)
    cache = str(model.get("cache_dtype") or spec.model.cache_dtype)
    per_token = bytes_per_token(state, cache)
    first = [
        str(model.get("id") or spec.model.id) + (" (random weights)" if spec.model.random_weights else ""),
        heads(state),
        f"{dtype}, cache {cache}",
        f"baseline {size(per_token)} a token" if per_token else "",
        str(model.get("device_name") or model.get("device") or ""),
    ]
    second = [
        *(_text_read(state) if any(e.needs_text for e in evaluators_of(spec)) else [f"{spec.protocol}, no text"]),
        f"{len(state.methods)} methods",
        duration(state.elapsed),
    ]
    return [" · ".join(filter(None, line)) for line in (first, second)]


def _text_read(state: RunState) -> list[str]:
    spec = state.spec
    if spec is None:
        return []
    return [
        str(state.corpus.get("name") or spec.corpus.name),
        f"{spec.protocol}, {spec.context} + {spec.continuation} tokens",
        f"{spec.samples} samples" + (f" in batches of {spec.batch_size}" if spec.batch_size > 1 else ""),
    ]


def heads(state: RunState) -> str:
    """The model's layers and heads."""
    m = state.model
    if not {"layers", "heads", "kv_heads", "head_dim"} <= m.keys():
        return ""
    return f"{m['layers']} layers, {m['heads']} heads, {m['kv_heads']} KV heads {TIMES} {m['head_dim']}"


def bytes_per_token(state: RunState, cache_dtype: str) -> int | None:
    """The baseline's bytes for one token, all layers; ``None`` while model or format are not known."""
    m, itemsize = state.model, ITEM_SIZES.get(cache_dtype)
    if itemsize is None or not {"layers", "kv_heads", "head_dim"} <= m.keys():
        return None
    return cache_bytes_per_token(Shape(m["layers"], m.get("heads", 0), m["kv_heads"], m["head_dim"], 0, 0, 0), itemsize)


def budget_notes(found: Sequence[Row]) -> list[str]:
    """What was turned to meet the budgets, a line for each method, and whose measured bytes then miss them."""
    turned: dict[str, list[str]] = {}
    lines: list[str] = []
    for row in found:
        if row.target_bytes is None or row.status == "failed":
            continue
        method, _, budget = row.label.rpartition("@")
        turned.setdefault(method, []).append(f"{budget} {row.settings or 'as it is'}")
        if row.stored_bytes is not None and not is_met(row.stored_bytes, row.target_bytes):
            share = row.stored_bytes / row.target_bytes
            lines.append(f"{row.label} stores {share:.0%} of its budget over all samples: its size depends on the text")
    return [f"{method}: {' · '.join(settings)}" for method, settings in turned.items()] + lines


def failures(state: RunState, found: Sequence[Row]) -> list[str]:
    """Methods that failed."""
    return [f"{row.label} failed: {row.error}" for row in found if row.status == "failed"]


def missing(state: RunState) -> list[str]:
    """Work that is not there, and why."""
    lines = [f"{unit} is missing: {reason}" for unit, reason in state.lost.items()]
    if not state.is_over:
        lines.append(f"{len(state.done)} of {len(state.units)} units are done")
    return lines


def left_out(state: RunState) -> list[tuple[str, str, str]]:
    """(evaluator, what, why) of all that evaluators said they do without (``left_out`` of what they prepared)."""
    return [(name, what, str(why)) for name, facts in state.prepared.items() for what, why in (facts.get("left_out") or {}).items()]


def shortened(line: str, width: int) -> str:
    """One line of at most ``width`` characters, cut between words."""
    return textwrap.shorten(line, width, placeholder=" …")
