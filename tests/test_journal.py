"""The journal: whole lines only, one writer, folders that appear whole."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kvbench.engine.journal import EVENTS, RunFolder, find_run
from kvbench.errors import ResourceError, ResultError, RunBusy, UnknownName, UsageError
from kvbench.record import events as ev
from kvbench.spec import ModelSpec, RunSpec


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(RunSpec(preset="smollm2"), tmp_path / "runs")


def notes(count: int) -> list[ev.Event]:
    return [ev.NoteWritten(float(i), f"note {i} äöü") for i in range(count)]


def test_what_is_written_is_read_back(folder: RunFolder) -> None:
    with folder.writer() as journal:
        for event in notes(3):
            journal.append(event, sync=True)
    assert folder.read() == notes(3)
    assert folder.spec() == RunSpec(preset="smollm2")


@pytest.mark.parametrize(
    "torn", [b'{"event":"NoteWritten"', b"\x00" * 70000, b'{"event":"NoteWritten","at":1.0,"text":"whole but its end"}']
)
def test_a_torn_last_line_is_ignored_and_cut_when_writing_goes_on(folder: RunFolder, torn: bytes) -> None:
    with folder.writer() as journal:
        journal.append(notes(1)[0])
    with (folder.path / EVENTS).open("ab") as file:
        file.write(torn)
    assert folder.read() == notes(1)
    with folder.writer() as journal:
        journal.append(notes(2)[1])
    assert folder.read() == notes(2)


def test_every_cut_of_the_journal_gives_a_prefix_of_its_events(folder: RunFolder) -> None:
    with folder.writer() as journal:
        for event in notes(4):
            journal.append(event)
    path = folder.path / EVENTS
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        assert folder.read() == notes(4)[: whole[:size].count(b"\n")]


def test_a_broken_line_in_the_middle_is_named_by_its_number(folder: RunFolder) -> None:
    with folder.writer() as journal:
        journal.append(notes(1)[0])
    with (folder.path / EVENTS).open("ab") as file:
        file.write(b'{"event":"NoSuchEvent","at":1.0}\n' + ev.encode(notes(2)[1]))
    with pytest.raises(ResultError, match="line 2"):
        folder.read()


def test_another_schema_is_refused(folder: RunFolder) -> None:
    with folder.writer() as journal:
        journal.append(ev.RunStarted(1.0, RunSpec().to_plain(), [], [], "0", 99))
    with pytest.raises(ResultError, match="schema 99"):
        folder.read()


def test_tail_gives_each_event_once_and_waits_for_whole_lines(folder: RunFolder) -> None:
    tail = folder.tail()
    assert tail.poll() == []
    line = ev.encode(notes(1)[0])
    with (folder.path / EVENTS).open("ab", buffering=0) as file:
        file.write(line[:20])
        assert tail.poll() == []
        file.write(line[20:] + line)
        assert tail.poll() == notes(1) * 2
        assert tail.poll() == []


def test_a_full_disk_leaves_no_half_line(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    with folder.writer() as journal:
        journal.append(notes(1)[0])

        def full(fd: int, data: bytes) -> int:
            real_write(fd, data[:10])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(ResourceError, match="No space left"):
            journal.append(notes(2)[1])
        monkeypatch.undo()
        journal.append(notes(2)[1])
    assert folder.read() == notes(2)


def test_the_lock_is_exclusive_and_ends_with_its_last_descriptor(folder: RunFolder) -> None:
    assert not folder.is_alive()
    lock = folder.acquire()
    inherited = os.dup(lock)
    os.close(lock)
    assert folder.is_alive()
    with pytest.raises(RunBusy):
        folder.acquire(patience=0.0)
    os.close(inherited)
    assert not folder.is_alive()
    os.close(folder.acquire())


def test_a_dead_owners_process_id_is_forgotten(folder: RunFolder) -> None:
    (folder.path / "lock").write_text("12345")
    lock = folder.acquire()
    assert folder.pid() is None
    os.close(lock)


def test_names_are_unique_and_say_time_and_model(tmp_path: Path) -> None:
    made = [RunFolder.create(RunSpec(model=ModelSpec(id="Org/My Model")), tmp_path) for _ in range(3)]
    assert len({f.name for f in made}) == 3
    assert all("my-model" in f.name and f.name.startswith(f"{time.localtime().tm_year}-") for f in made)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_name_that_is_taken_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    RunFolder.create(RunSpec(), tmp_path, "mine")
    with pytest.raises(UsageError, match="exists already"):
        RunFolder.create(RunSpec(), tmp_path, "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        RunFolder.create(RunSpec(), tmp_path / "file")


def test_runs_are_found_by_folder_and_by_name_and_near_names_are_told(folder: RunFolder, tmp_path: Path) -> None:
    output = tmp_path / "runs"
    assert find_run(str(folder.path), tmp_path).path == folder.path
    assert find_run(folder.name, output).path == folder.path
    with pytest.raises(UnknownName) as caught:
        find_run(folder.name[:-1], output)
    assert caught.value.nearest == [folder.name]
    with pytest.raises(UnknownName):
        find_run("anything", tmp_path / "nowhere")


def test_a_broken_spec_is_a_result_error(folder: RunFolder) -> None:
    (folder.path / "spec.json").write_text("{")
    with pytest.raises(ResultError):
        folder.spec()
