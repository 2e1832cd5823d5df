"""Processes under fire: real supervisors and workers, real signals, a stub in place of the model."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from at_hand import at_hand, calm_run  # noqa: F401
from stub_fixtures import HOME, forget_registries, stub_spec, stubbed  # noqa: F401

from kvbench.engine import start
from kvbench.engine.journal import RunFolder
from kvbench.errors import ModelError, RunBusy, RunFailed
from kvbench.instruments.tiny import make_tiny_config
from kvbench.record import events as ev
from kvbench.record import results
from kvbench.spec import EvaluatorSpec, MethodSpec, ModelSpec, RunSpec

pytestmark = pytest.mark.usefixtures("stubbed")


def finish(folder: RunFolder) -> dict[str, Any]:
    """Follow to the end and read the result."""
    for _ in start.follow(folder):
        pass
    return results.load(folder.path)


def numbers(result: dict[str, Any]) -> object:
    """All that a run measured, without times and names."""
    return result["records"], result["results"], result["complete"], result["lost"], result["baseline_perplexity"]


def begin(spec: RunSpec, output: Path) -> RunFolder:
    folder = start.create(spec, output)
    start.launch(folder)
    return folder


def wait_for(folder: RunFolder, kind: type[ev.Event], count: int = 1) -> None:
    seen = 0
    for _, event in start.follow(folder):
        seen += isinstance(event, kind)
        if seen >= count:
            return
    raise AssertionError(f"the run ended without {count} {kind.__name__}")


def status_of(result: dict[str, Any]) -> dict[str, str]:
    return {row["method"]: row["status"] for row in result["results"]}


def test_a_run_gives_every_number(tmp_path: Path) -> None:
    result = start.run(stub_spec(), output_dir=tmp_path)
    assert result["complete"]
    assert status_of(result) == dict.fromkeys(["baseline", "random", "knorm", "int8"], "done")
    assert all(row["total_tokens"] == 4 and row["audit"] == "real" for row in result["results"])
    (folder,) = map(RunFolder, tmp_path.iterdir())
    assert "library talk on stdout" in folder.log.read_text()
    assert sum(isinstance(e, ev.WorkerStarted) for e in folder.read()) == 1


def test_twenty_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    """SIGKILL of the worker, the supervisor, both in turn; each time the run goes on to the same numbers."""
    spec, rng = stub_spec("ms=20", samples=80), random.Random(2)
    expected = numbers(calm_run(stub_spec("ms=0", samples=80), tmp_path / "undisturbed"))
    folder, kills = begin(spec, tmp_path / "killed"), 0
    while kills < 20 and folder.state().status != "finished":
        time.sleep(rng.uniform(0.1, 0.7))
        kills += kill(folder, kills % 3)
        start.resume(folder)
    assert numbers(finish(folder)) == expected
    assert kills == 20


def kill(folder: RunFolder, what: int) -> int:
    """SIGKILL the worker (0), the supervisor (1) or both (2); the number of processes that were there."""
    state = folder.state()
    pids = [state.worker_pid if what != 1 else None, folder.pid() if what != 0 and folder.is_alive() else None]
    hit = 0
    for pid in pids:
        if pid is not None and state.status != "finished":
            try:
                os.kill(pid, signal.SIGKILL)
                hit = 1
            except ProcessLookupError:
                pass
    deadline = time.monotonic() + 5
    while what != 0 and pids[1] is not None and folder.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    return hit


def test_the_worker_dies_with_its_supervisor(tmp_path: Path) -> None:
    folder = begin(stub_spec("ms=200"), tmp_path)
    wait_for(folder, ev.UnitStarted)
    worker, supervisor = folder.state().worker_pid, folder.pid()
    assert worker is not None
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(worker)
    assert not folder.is_alive()
    error = start.failure(folder, folder.state())
    assert isinstance(error, RunFailed)
    assert error.hint is not None
    assert "--resume" in error.hint


def is_running(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("fault", ["SIGSEGV", "SIGKILL"])
def test_a_method_that_kills_its_worker_is_blamed_and_the_rest_goes_on(tmp_path: Path, fault: str) -> None:
    result = start.run(stub_spec(f"fault={fault},method=knorm,index=1"), output_dir=tmp_path)
    assert status_of(result) == {"baseline": "done", "random": "done", "knorm": "failed", "int8": "done"}
    rows = {row["method"]: row for row in result["results"]}
    assert rows["knorm"]["error_kind"] == "crash"
    assert fault in rows["knorm"]["error"]
    assert rows["int8"]["total_tokens"] == 4
    assert result["complete"]


def test_one_crash_is_forgiven(tmp_path: Path) -> None:
    calm = calm_run(stub_spec(), tmp_path / "calm")
    once = start.run(stub_spec(f"fault=SIGABRT,method=int8,index=2,times=1,tally={tmp_path}/tally"), output_dir=tmp_path / "once")
    assert calm["records"] == once["records"]
    assert status_of(once)["int8"] == "done"


def test_a_unit_in_which_the_baseline_kills_the_worker_is_left_out(tmp_path: Path) -> None:
    result = start.run(stub_spec("fault=SIGSEGV,method=baseline,index=1"), output_dir=tmp_path)
    assert list(result["lost"]) == ["counting/1"]
    assert not result["complete"]
    assert all(row["total_tokens"] == 3 and row["status"] == "done" for row in result["results"])


@pytest.mark.usefixtures("at_hand")
def test_methods_failures_are_their_rows_and_not_the_runs_end(tmp_path: Path) -> None:
    result = start.run(
        stub_spec("fault=raise+nan+memory,method=random+knorm+int4,index=1", "baseline random knorm int4 int8"), output_dir=tmp_path
    )
    rows = {row["method"]: row for row in result["results"]}
    failed = {"random": "ValueError", "knorm": "not finite", "int4": "out of memory"}
    for method, kind in failed.items():
        assert (rows[method]["status"], rows[method]["error_kind"]) == ("failed", kind)
        assert "\n" not in rows[method]["error"]
        assert rows[method]["total_tokens"] == 1
    assert rows["int8"]["total_tokens"] == rows["baseline"]["total_tokens"] == 4


@pytest.mark.usefixtures("at_hand")
def test_a_baseline_that_fails_ends_the_run_with_a_partial_result(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="baseline failed in counting/2"):
        start.run(stub_spec("fault=raise,method=baseline,index=2"), output_dir=tmp_path)
    (folder,) = map(RunFolder, tmp_path.iterdir())
    assert folder.state().exit_code == 7
    partial = results.load(folder.path)
    assert not partial["complete"]
    assert len(partial["records"]["counting"]["int8"]) == 2


@pytest.mark.usefixtures("at_hand")
def test_all_methods_failing_is_a_failed_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="no method could be measured"):
        start.run(stub_spec("fault=raise,method=random,index=0", methods="baseline random"), output_dir=tmp_path)


def test_a_missing_model_is_one_error_with_its_own_exit_code(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not there") as caught:
        start.run(stub_spec(model="missing"), output_dir=tmp_path)
    assert caught.value.hint == "use another --model"
    (folder,) = map(RunFolder, tmp_path.iterdir())
    assert folder.state().exit_code == 3
    assert not folder.result.exists()


def test_a_worker_that_never_gets_to_work_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="before its first unit") as caught:
        start.run(stub_spec(model="crashing"), output_dir=tmp_path)
    assert "SIGABRT" in caught.value.message


def test_stopping_keeps_what_is_finished_and_resuming_ends_with_the_same_numbers(tmp_path: Path) -> None:
    spec = stub_spec("ms=30")
    expected = numbers(calm_run(spec, tmp_path / "whole"))
    folder = begin(spec, tmp_path / "stopped")
    wait_for(folder, ev.UnitFinished, 2)
    start.stop(folder)
    state = folder.state()
    assert state.status == "interrupted"
    assert not folder.result.exists()
    assert state.worker_pid is not None
    assert not is_running(state.worker_pid)
    assert start.resume(folder) == "resumed"
    assert numbers(finish(folder)) == expected
    assert start.resume(folder) == "finished"
    done = [e.unit for e in folder.read() if isinstance(e, ev.UnitFinished)]
    assert len(done) == len(set(done))


def test_a_run_that_is_alive_has_one_owner(tmp_path: Path) -> None:
    folder = begin(stub_spec("ms=50"), tmp_path)
    assert start.resume(folder) == "attached"
    with pytest.raises(RunBusy):
        start.launch(folder)
    finish(folder)


@pytest.mark.usefixtures("at_hand")
def test_a_run_killed_before_its_first_event_begins_on_resume(tmp_path: Path) -> None:
    folder = start.create(stub_spec(), tmp_path)
    (folder.path / "events.jsonl").write_bytes(b'{"event":"RunSta')
    assert start.resume(folder) == "resumed"
    assert finish(folder)["complete"]


@pytest.mark.usefixtures("at_hand")
def test_a_run_killed_before_its_last_event_needs_no_worker(tmp_path: Path) -> None:
    folder = begin(stub_spec(), tmp_path)
    whole = finish(folder)
    path = folder.path / "events.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    folder.result.unlink()
    assert start.resume(folder) == "resumed"
    assert numbers(finish(folder)) == numbers(whole)
    assert sum(isinstance(e, ev.WorkerStarted) for e in folder.read()) == 1


def test_other_weights_on_resume_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begin(stub_spec("ms=30"), tmp_path)
    wait_for(folder, ev.UnitFinished)
    start.stop(folder)
    monkeypatch.setenv("STUB_WEIGHTS", "other")
    for _ in range(2):
        start.resume(folder)
        for _ in start.follow(folder):
            pass
        assert "weights_hash changed" in str(folder.state().error)


def test_the_supervisor_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path;"
        "from stub_fixtures import stub_spec; from kvbench.engine import start;"
        "f = start.create(stub_spec('ms=20'), Path(sys.argv[1])); start.launch(f); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], check=False)
    (folder,) = map(RunFolder, tmp_path.iterdir())
    assert finish(folder)["complete"]


def test_a_real_tiny_model_survives_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine itself, no stub: exact bytes after SIGKILL of a worker and of a supervisor are those of a calm run."""
    monkeypatch.setenv("PYTHONPATH", str(HOME))
    for name in ("kvbench.instruments.session", "kvbench.evaluators.audit"):
        monkeypatch.delitem(sys.modules, name)
    forget_registries()
    model = ModelSpec(id="tiny", random_weights=True, config=make_tiny_config("qwen2"), device="cpu", dtype="float32")
    methods = tuple(MethodSpec.parse(m) for m in ("baseline", "random", "knorm", "int8"))
    spec = RunSpec(model=model, methods=methods, evaluators=(EvaluatorSpec("memory"),), context=32, continuation=8, samples=1)
    calm = calm_run(spec, tmp_path / "calm")
    assert calm["complete"]
    folder = begin(spec, tmp_path / "killed")
    wait_for(folder, ev.ModelLoaded)
    assert kill(folder, 0) == 1
    wait_for(folder, ev.WorkerStarted, 2)
    assert kill(folder, 1) == 1
    assert start.resume(folder) == "resumed"
    killed = finish(folder)
    assert killed["complete"]
    for ours, theirs in zip(killed["results"], calm["results"], strict=True):
        assert (ours["stored_bytes"], ours["audit"]) == (theirs["stored_bytes"], theirs["audit"])
