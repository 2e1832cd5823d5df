"""How ``capacity`` searches, what bounds its probes, and what it says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sessions import told_by
from telling import Told
from test_speed import session_of

from kvbench.errors import UsageError
from kvbench.evaluators.capacity import Capacity, _search
from kvbench.instruments.session import Session
from kvbench.instruments.stopwatch import Stopwatch
from kvbench.metrics import probes
from kvbench.spec import RunSpec

TOKENS, LAYERS, HEADS, DIM, ITEM = 64, 4, 2, 16, 4
DENSE = 2 * HEADS * TOKENS * DIM * ITEM
"""One layer's keys and values of one sequence."""


def searched(limit: int, most: int, grain: int = 1) -> list[int]:
    """What is tried where ``limit`` is the largest that fits."""
    tried: list[int] = []

    def fits(value: int) -> bool:
        tried.append(value)
        return value <= limit

    _search(fits, most, grain)
    return tried


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 5, 8, 31, 32, 33, 99, 100, 1000])
@pytest.mark.parametrize("most", [1, 7, 32, 100])
def test_the_largest_that_fits_is_found_and_nothing_is_tried_twice(limit: int, most: int) -> None:
    tried = searched(limit, most)
    good, bad = [v for v in tried if v <= limit], [v for v in tried if v > limit]
    assert max(good, default=0) == min(limit, most)
    assert min(bad, default=most + 1) == min(limit, most) + 1
    assert len(set(tried)) == len(tried) <= 2 * most.bit_length() + 1
    assert max(tried) <= most


def test_lengths_are_found_to_the_grain() -> None:
    tried = searched(1000, 2048, 256)
    assert all(value % 256 == 0 for value in tried)
    assert max(value for value in tried if value <= 1000) == 768


def sought(session: Session, **params: Any) -> tuple[Capacity, Told]:
    evaluator = Capacity(**{"steps": 2, **params})
    assert all(len(unit.methods) == 1 for unit in evaluator.units(session.spec, list(session.methods)))
    return evaluator, told_by(evaluator, session)


def gib(size: int) -> float:
    return (size + 0.5) / 2**30


def test_a_budget_is_what_the_baseline_would_hold_and_int8_finds_room_for_more() -> None:
    budget = (LAYERS + 1) * DENSE * 5 + 5 * LAYERS * 64  # 5 sequences with the last layer drawn; lengths are 64 bytes a layer at most
    evaluator, told = sought(session_of(["int8"], torch.float32, context=TOKENS), limit_gib=gib(budget), most=32)
    found = {label: s.fields for label, s in evaluator.summarise(told.records, "baseline").items()}
    assert (found["baseline"]["capacity_batch"], found["baseline"]["capacity_batch_is_exact"]) == (5, True)
    assert 5 < found["int8"]["capacity_batch"] < 32
    assert found["int8"]["capacity_batch_beside"] == "context=64"
    fitted, over = told.records["baseline"]["batch=5,context=64"], told.records["baseline"]["batch=6,context=64"]
    assert (fitted["out_of_memory"], fitted["read_path"], fitted["steps"]) == (False, "reference", 2)
    assert fitted["stored_bytes"] <= fitted["budget_bytes"] == budget
    assert (over["out_of_memory"], over["limited_by"]) == (True, "budget")
    assert "may be" in over["reason"]
    (table,) = evaluator.figures(told.records, "baseline", {})
    cells = {row[0]: row for row in table.rows}
    assert cells["baseline"][1:3] == ["5", "1.00×"]
    assert cells["int8"][2] == f"{found['int8']['capacity_batch'] / 5:.2f}×"
    assert cells["baseline"][-1] == "budget"
    assert any(note.startswith("budget:") for note in table.notes)


def test_where_the_end_of_the_search_fits_nothing_more_is_said() -> None:
    evaluator, told = sought(session_of([], torch.float32, context=TOKENS), most=3)
    summary = evaluator.summarise(told.records, "baseline")["baseline"]
    assert (summary.fields["capacity_batch"], summary.fields["capacity_batch_text"]) == (3, "≥ 3")
    assert summary.fields["capacity_batch_is_exact"] is False
    assert not summary.measured  # a bound is no figure to compare
    (table,) = evaluator.figures(told.records, "baseline", {})
    assert table.rows[0][1:3] == ["≥ 3", "–"]
    assert table.rows[0][-1] == "end of the search"


def test_a_bound_over_an_exact_baseline_is_a_bound() -> None:
    budget = (LAYERS + 1) * DENSE * 2 + 2 * LAYERS * 64
    evaluator, told = sought(session_of(["int4"], torch.float32, context=TOKENS), limit_gib=gib(budget), most=3)
    rows = {row[0]: row[1:3] for row in evaluator.figures(told.records, "baseline", {})[0].rows}
    assert rows["baseline"] == ["2", "1.00×"]
    assert rows["int4"] == ["≥ 3", "≥ 1.50×"]


def test_the_longest_context_ends_at_the_models_positions_and_is_a_multiple_of_the_grain() -> None:
    evaluator, told = sought(session_of([], torch.float32), find="context", grain=512)
    fields = evaluator.summarise(told.records, "baseline")["baseline"].fields
    assert fields["capacity_context_text"] == "≥ 1,536"  # 2048 positions less the steps
    assert fields["capacity_context_beside"] == "batch=1"
    assert [r["context"] for r in told.records["baseline"].values()] == [512, 1024, 1536]


def test_allocation_that_fails_is_told_from_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Stopwatch.drawn

    def drawn(self: Stopwatch, label: str, check: Any = None) -> Any:
        if self.point.batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(self, label, check)

    monkeypatch.setattr(Stopwatch, "drawn", drawn)
    evaluator, told = sought(session_of([], torch.float32, context=TOKENS))
    assert {k: r["out_of_memory"] for k, r in told.records["baseline"].items()} == {
        "batch=1,context=64": False, "batch=2,context=64": False, "batch=4,context=64": True, "batch=3,context=64": True,
    }  # fmt: skip
    summary = evaluator.summarise(told.records, "baseline")["baseline"]
    assert summary.fields["capacity_batch"] == 2
    assert [(m.metric, m.value, m.unit, m.point) for m in summary.measured] == [("capacity_batch", 2, "sequences", "context=64")]
    assert evaluator.figures(told.records, "baseline", {})[0].rows[0][-1] == "out of memory"


def test_a_search_that_goes_on_says_no_more_than_it_found() -> None:
    evaluator, told = sought(session_of([], torch.float32, context=TOKENS), most=8)
    half = {"baseline": dict(list(told.records["baseline"].items())[:2])}
    (table,) = evaluator.figures(half, "baseline", {})
    assert table.rows[0][1] == "≥ 2"
    assert table.rows[0][-1] == "–"
    assert evaluator.figures({}, "baseline", {}) == []
    assert evaluator.summarise({"m": {}}, "baseline")["m"].fields == {}


def test_cells_are_those_of_the_largest_that_fitted() -> None:
    record = {
        "find": "batch", "context": 64, "most": 8, "grain": 1, "out_of_memory": False, "limited_by": None, "read_path": "fused",
        "stored_bytes": 3 * 2**20, "allocator_bytes": 2**19,
    }  # fmt: skip
    full = record | {"out_of_memory": True, "limited_by": "budget", "read_path": "reference", "stored_bytes": 2**30}
    records = {
        "baseline": {"1": record | {"batch": 1}, "2": full | {"batch": 2}},
        "m": {"3": record | {"batch": 3}, "4": full | {"batch": 4}},
    }
    (table,) = probes.tables(records, "baseline")
    assert table.rows[1] == ["m", "3", "3.00×", "3.0", "0.5", "fused", "budget"]


def test_nothing_fits() -> None:
    evaluator, told = sought(session_of([], torch.float32, context=TOKENS), limit_gib=1e-9)
    assert len(told.records["baseline"]) == 1
    assert evaluator.summarise(told.records, "baseline")["baseline"].fields["capacity_batch_text"] == "0"


def test_another_error_is_the_methods_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*_: Any) -> Any:
        raise ArithmeticError("broken")

    monkeypatch.setattr(Stopwatch, "drawn", drawn)
    _, told = sought(session_of([], torch.float32, context=TOKENS))
    assert told.failed == {"baseline", "random"}


def test_lengths_beyond_the_models_positions_are_refused() -> None:
    check: Callable[..., None] = Capacity(find="context", most=4096).check_length
    with pytest.raises(UsageError, match="beyond this model's 2,048 positions"):
        check(RunSpec(), 2048)
