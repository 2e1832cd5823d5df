"""The result file: whole or absent, and refused with a reason when it is not one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from stub_fixtures import stub_spec, stubbed  # noqa: F401

from kvbench.engine.journal import SCHEMA
from kvbench.errors import ResourceError, ResultError
from kvbench.record import events as ev
from kvbench.record import results
from kvbench.record.state import RunState, replay
from kvbench.record.summary import rows

pytestmark = pytest.mark.usefixtures("stubbed")
METHODS = ["baseline", "knorm"]


@pytest.fixture
def state() -> RunState:
    spec = stub_spec(methods=" ".join(METHODS), samples=1)
    unit = {"id": "u", "evaluator": "counting", "index": 0, "methods": METHODS, "steps": 2}
    return replay([
        ev.RunStarted(0.0, spec.to_plain(), [unit], METHODS, "0.1.0", SCHEMA),
        ev.ModelLoaded(1.0, {"id": "stub", "weights_hash": "beef"}, 1.0),
        ev.RecordMade(2.0, "u", "counting", "baseline", "0", {"value": 12.0, "tokens": 3}),
        ev.RecordMade(2.0, "u", "counting", "knorm", "0", {"value": 13.5, "tokens": 3}),
        ev.AuditRecorded(2.0, "knorm", "real", {"ledger": {"passed": True}}),
        ev.UnitFinished(3.0, "u", 1.0),
        ev.RunFinished(4.0, "result.json", 4.0),
    ])  # fmt: skip


@pytest.fixture
def result(state: RunState) -> dict[str, Any]:
    return results.build(state, "mine")


def test_a_result_holds_what_was_measured(result: dict[str, Any]) -> None:
    baseline, knorm = result["results"]
    assert result["baseline_perplexity"] == 12.0
    assert (baseline["method"], baseline["method_name"], baseline["status"]) == ("baseline", "Baseline (full cache)", "done")
    assert (knorm["perplexity"], knorm["total_tokens"], knorm["audit"]) == (13.5, 3, "real")
    assert knorm["audit_checks"] == {"ledger": {"passed": True}}
    assert knorm["measured"][0]["samples"] == {"0": 13.5}
    assert result["records"]["counting"]["knorm"]["0"]["value"] == 13.5
    assert result["complete"] is True
    assert result["seconds"] == 4.0


def test_a_run_that_is_not_over_is_not_complete(state: RunState) -> None:
    from kvbench.record.state import apply

    going_on = apply(state, ev.RunResumed(9.0, 1))
    assert results.build(going_on, "mine")["complete"] is False


def test_a_run_that_has_not_begun_has_no_result() -> None:
    with pytest.raises(ResultError, match="has not begun"):
        results.build(RunState(), "mine")


def test_saved_and_loaded_it_is_the_same(result: dict[str, Any], tmp_path: Path) -> None:
    results.save(result, tmp_path / "result.json")
    assert results.load(tmp_path / "result.json") == result
    assert results.load(tmp_path) == result
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_rows_from_a_result_file_are_the_runs_rows(state: RunState, result: dict[str, Any]) -> None:
    for mine, its in zip(rows(results.to_state(result)), rows(state), strict=True):
        assert (mine.label, mine.status, mine.perplexity, mine.audit) == (its.label, its.status, its.perplexity, its.audit)


def test_a_place_that_cannot_be_written_leaves_nothing(result: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ResourceError):
        results.save(result, tmp_path / "nowhere" / "result.json")
    (tmp_path / "taken").mkdir()
    with pytest.raises(ResourceError):
        results.save(result, tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def broken(result: dict[str, Any], **changes: Any) -> bytes:
    return orjson.dumps({k: v for k, v in {**result, **changes}.items() if v != "absent"})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 2}, "schema is 2"),
        ({"schema": "absent"}, "no schema"),
        ({"records": "absent", "seconds": "absent"}, "lacks records, seconds"),
        ({"results": {}}, "results of the wrong kind"),
        ({"results": [{"method": "knorm"}]}, "lacks method, status or measured"),
    ],
)
def test_what_is_no_result_is_refused_with_the_reason(result: dict[str, Any], tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    (tmp_path / "r.json").write_bytes(broken(result, **changes))
    with pytest.raises(ResultError, match=reason):
        results.load(tmp_path / "r.json")


@pytest.mark.parametrize(("content", "reason"), [(None, "cannot be read"), (b'{"schema": 1', "is not JSON"), (b"[]", "no schema")])
def test_missing_and_unreadable_files_are_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ResultError, match=reason):
        results.load(tmp_path / "r.json")
