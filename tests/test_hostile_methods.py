"""Methods that hang, shout, close what is not theirs and leave processes behind: real processes, a stub in place of the model."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from stub_fixtures import stub_spec, stubbed  # noqa: F401
from test_supervisor import begin, finish, is_running, status_of, wait_for

from kvbench.engine import runlog, start
from kvbench.engine.deadlines import FACTOR, LEAST, LEAST_ALONE, Limits
from kvbench.engine.journal import RunFolder
from kvbench.engine.pipe import JUNK_TOLD, LINE_MOST, Receiver
from kvbench.engine.runlog import RunLog
from kvbench.errors import RunFailed
from kvbench.record import events as ev
from kvbench.spec import Unit

pytestmark = pytest.mark.usefixtures("stubbed")
ALL_DONE = dict.fromkeys(["baseline", "random", "knorm", "int8"], "done")


def daemons() -> list[int]:
    """Living processes that the stub's ``daemon`` started."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if "kvbench-test-daemon" in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def run_with(
    fault: str, tmp_path: Path, *, timeout: float | str = "auto", method: str = "knorm", more: str = ""
) -> tuple[dict[str, Any], RunFolder]:
    spec = stub_spec(f"fault={fault},method={method},index=1{more}").with_changes(method_timeout=timeout)
    result = start.run(spec, output_dir=tmp_path)
    (folder,) = map(RunFolder, tmp_path.iterdir())
    return result, folder


@cache
def calm() -> Any:
    """The records of a run in which nothing goes wrong."""
    with tempfile.TemporaryDirectory() as folder:
        return start.run(stub_spec(), output_dir=Path(folder))["records"]


def notes(folder: RunFolder) -> list[str]:
    return [event.text for event in folder.read() if isinstance(event, ev.NoteWritten)]


@pytest.mark.parametrize("fault", ["hang", "hang_in_c", "hang_deaf"])
def test_a_method_that_hangs_fails_and_the_run_goes_on(tmp_path: Path, fault: str) -> None:
    result, folder = run_with(fault, tmp_path, timeout=1.0)
    rows = {row["method"]: row for row in result["results"]}
    assert status_of(result) == {**ALL_DONE, "knorm": "failed"}
    assert rows["knorm"]["error_kind"] == "too long"
    assert "took longer than 1 s" in rows["knorm"]["error"]
    assert "--method-timeout" in rows["knorm"]["error"]
    assert rows["int8"]["total_tokens"] == 4
    assert result["complete"]
    assert "stub_faults.py" in folder.log.read_text()  # where it hung


def test_a_baseline_that_hangs_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="the baseline in counting/1 took longer than 1 s"):
        run_with("hang", tmp_path, timeout=1.0, method="baseline")


def test_a_worker_that_is_stopped_loses_no_time(tmp_path: Path) -> None:
    folder = begin(stub_spec("ms=300", samples=3).with_changes(method_timeout=1.5), tmp_path)
    wait_for(folder, ev.RecordMade)
    worker = folder.state().worker_pid
    assert worker is not None
    os.kill(worker, signal.SIGSTOP)
    time.sleep(3.0)
    os.kill(worker, signal.SIGCONT)
    assert status_of(finish(folder)) == ALL_DONE


def test_junk_on_the_event_pipe_costs_a_note(tmp_path: Path) -> None:
    result, folder = run_with("junk", tmp_path / "loud")
    assert result["records"] == calm()
    assert status_of(result) == ALL_DONE
    assert any("garbage, not json" in note for note in notes(folder))
    assert len(notes(folder)) == JUNK_TOLD + 1
    assert sum(isinstance(e, ev.WorkerStarted) for e in folder.read()) == 1


@pytest.mark.parametrize("fault", ["close_descriptors", "replace_descriptors"])
def test_a_method_that_takes_the_pipe_is_blamed(tmp_path: Path, fault: str) -> None:
    result, _ = run_with(fault, tmp_path)
    rows = {row["method"]: row for row in result["results"]}
    assert status_of(result) == {**ALL_DONE, "knorm": "failed"}
    assert "its event pipe was closed" in rows["knorm"]["error"]
    assert rows["int8"]["total_tokens"] == 4


def test_an_event_that_is_torn_is_never_a_hole(tmp_path: Path) -> None:
    """Whether or not an event is hit before the run's end, every record is there, or its row has failed."""
    result, _ = run_with("tear", tmp_path / "torn", more=",ms=50")
    for row in result["results"]:
        if row["status"] == "done":
            assert result["records"]["counting"][row["method"]] == calm()["counting"][row["method"]]
    assert result["complete"]


def test_a_fork_that_goes_on_as_the_worker_ends(tmp_path: Path) -> None:
    result, _ = run_with("go_on_twice", tmp_path / "twice")
    assert result["records"] == calm()


def test_children_in_sessions_of_their_own_end_with_the_worker(tmp_path: Path) -> None:
    before = set(daemons())
    result, _ = run_with("daemon", tmp_path)
    assert status_of(result) == ALL_DONE
    assert set(daemons()) <= before


def test_what_a_killed_supervisor_leaves_is_ended_by_who_follows_it(tmp_path: Path) -> None:
    before = set(daemons())
    folder = begin(stub_spec("fault=daemon,method=knorm,index=1,ms=60", samples=8), tmp_path)
    wait_for(folder, ev.UnitFinished, 4)
    marked = set(daemons()) - before
    assert len(marked) == 3
    supervisor = folder.pid()
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    for _ in start.follow(folder):
        pass
    left = set(daemons()) - before
    assert len(left) <= 1  # the one that was started without its environment
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    start.resume(folder)
    assert status_of(finish(folder)) == ALL_DONE


@pytest.mark.parametrize("what", ["folder", "lock", "moved"])
def test_a_run_whose_folder_goes_ends_its_processes_and_says_so(tmp_path: Path, what: str) -> None:
    folder = begin(stub_spec("ms=100", samples=80), tmp_path)
    wait_for(folder, ev.UnitFinished)
    worker, supervisor = folder.state().worker_pid, folder.pid()
    assert worker is not None
    assert supervisor is not None
    if what == "folder":
        shutil.rmtree(folder.path, ignore_errors=True)
    elif what == "moved":
        folder.path.rename(tmp_path / "elsewhere")
    else:
        (folder.path / "lock").unlink()
    deadline = time.monotonic() + 10
    while (is_running(worker) or is_running(supervisor)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(worker)
    assert not is_running(supervisor)
    if what == "lock":
        assert folder.state().status == "interrupted"
        return
    error = start.failure(folder, folder.state())
    assert isinstance(error, RunFailed)
    assert "deleted or moved" in error.message
    if what == "moved":
        assert RunFolder(tmp_path / "elsewhere").state().status == "interrupted"


def test_noise_is_left_out_of_the_middle_of_the_log(tmp_path: Path) -> None:
    result, folder = run_with("noise", tmp_path)
    assert status_of(result) == ALL_DONE
    assert folder.log.stat().st_size <= runlog.MOST
    text = folder.log.read_text()
    assert text.startswith("library talk on stdout")
    assert "bytes were left out here" in text


def test_a_log_counts_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlog, "MOST", 1000)
    monkeypatch.setattr(runlog, "KEPT", 200)
    path = tmp_path / "run.log"
    for start_at in (0, 500):  # a second writer goes on with the first one's file
        log = RunLog(path)
        for i in range(start_at, start_at + 500):
            log.write(b"%07d\n" % i)
    data = path.read_bytes()
    assert len(data) <= 1000
    assert data.startswith(b"0000000\n0000001\n")
    assert data.endswith(b"0000998\n0000999\n")
    (note,) = re.findall(r"\n\[\d+ bytes were left out here.*\]\n", data.decode())
    assert int(re.findall(r"\d+", note)[0]) == 8000 - (len(data) - len(note))


def test_a_line_without_an_end_takes_little_memory() -> None:
    receiver = Receiver("mark")
    found = [event for _ in range(3 * LINE_MOST >> 20) for event in receiver.feed(b"x" * (1 << 20))]
    assert len(receiver._rest) <= LINE_MOST + (1 << 20)
    assert found
    (event,) = [e for e in receiver.feed(b"x\nmark 1 " + ev.encode(ev.UnitStarted(1.0, "u"))) if isinstance(e, ev.UnitStarted)]
    assert event.unit == "u"
    assert not receiver.is_torn


@pytest.mark.parametrize(
    "line", [b"mark 3 {}", b"mark x {}", b"mark 2", b'mark 2 {"event":"UnitStarted"', b'mark 2 {"event":"Unheard","at":1.0}']
)
def test_a_numbered_line_that_cannot_be_read_tells_that_an_event_is_lost(line: bytes) -> None:
    receiver = Receiver("mark")
    first = b"mark 1 " + ev.encode(ev.UnitStarted(1.0, "u"))
    later = b"mark 4 " + ev.encode(ev.UnitFinished(1.0, "u", 1.0))
    assert [type(e).__name__ for e in receiver.feed(first + line + b"\n" + later)] == ["UnitStarted"]
    assert receiver.is_torn


UNITS = {key: Unit(key, key.split("/")[0], 0, ("baseline", "a", "b")) for key in ("ppl/0", "ppl/1", "tasks/0")}


def flying(limits: Limits, *events: tuple[str, str | None, float]) -> None:
    for unit, method, at in events:
        limits.hear(ev.UnitStarted(at, unit) if method is None else ev.MethodStarted(at, unit, method), at)


def test_limits_follow_what_others_took_in_the_same_evaluator() -> None:
    limits = Limits("auto", UNITS)
    flying(limits, ("ppl/0", None, 0.0), ("ppl/0", "baseline", 0.0), ("ppl/0", "a", 100.0))
    assert limits.overdue(100.0 + FACTOR * 100.0) is None
    assert f"{FACTOR * 100:g} s" in str(limits.overdue(100.0 + FACTOR * 100.0 + 1))
    flying(limits, ("tasks/0", None, 150.0), ("tasks/0", "a", 150.0))
    assert limits.overdue(150.0 + LEAST) is None
    assert f"{LEAST:g} s" in str(limits.overdue(150.0 + LEAST + 1))
    limits.forgive(50.0)
    assert limits.overdue(150.0 + LEAST + 49) is None
    flying(limits, ("tasks/0", "baseline", 200.0))
    assert limits.overdue(200.0 + LEAST_ALONE) is None
    assert limits.overdue(200.0 + LEAST_ALONE + 1) is not None
    limits.hear(ev.UnitFinished(300.0, "tasks/0", 1.0), 300.0)
    assert limits.overdue(1e9) is None


def test_limits_that_are_asked_for_are_kept() -> None:
    off, fixed = Limits("off", UNITS), Limits(5.0, UNITS)
    for limits in (off, fixed):
        flying(limits, ("ppl/0", None, 0.0), ("ppl/0", "a", 0.0))
    assert off.overdue(1e9) is None
    assert fixed.overdue(5.1) is not None
    fixed.worker_ended()
    assert fixed.overdue(1e9) is None


def test_methods_that_are_weighed_for_a_budget_have_a_limit_too() -> None:
    limits = Limits(5.0, UNITS)
    flying(limits, ("ppl/0", "a", 0.0))
    assert limits.overdue(6.0) is not None
    limits.hear(ev.BudgetSolved(1.0, "a", "4x", {}, 1.0, 1, 4), 1.0)
    assert limits.overdue(6.0) is None
