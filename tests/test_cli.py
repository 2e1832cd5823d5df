"""The command line: flags, exit codes, streams, signals, and what it must not import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
from at_hand import at_hand  # noqa: F401
from stub_fixtures import STUBS, stubbed  # noqa: F401

from kvbench.cli import COMMANDS, main
from kvbench.engine import start
from kvbench.engine.journal import RunFolder, run_names
from kvbench.errors import ExitCode
from kvbench.record import results

HEAVY = "torch transformers datasets textual"
RUN = ["run", "--model", "stub", "--methods", "knorm", "--evals", "counting:ms=2", "--samples", "3"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubbed: None) -> Path:  # noqa: F811
    """An empty folder to work in, with the stub engine."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only_run(folder: Path) -> RunFolder:
    (name,) = run_names(folder / "bench_results")
    return RunFolder(Path("bench_results") / name)


def kvbench(*args: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "kvbench", *args], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload, no-any-return]


def printed(commands: list[list[str]], unwanted: str) -> list[str]:
    """What each command prints, one after another in a process that must have loaded nothing unwanted by its end."""
    code = (
        "import contextlib, io, json, sys; from kvbench.cli import main; told = []\n"
        "for args in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out: assert main(args) == 0, args\n"
        "    told.append(out.getvalue())\n"
        "print(json.dumps([told, [m for m in sys.argv[2].split() if m in sys.modules]]))"
    )
    command = [sys.executable, "-c", code, orjson.dumps(commands).decode(), unwanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told, heavy = orjson.loads(done.stdout)
    assert heavy == []
    return list(told)


@pytest.mark.fast
def test_help_works_and_imports_nothing_heavy() -> None:
    whole, version, *others = printed([["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], f"{HEAVY} rich numpy scipy")
    assert all(name in whole for name in COMMANDS)
    assert version.startswith("kvbench ")
    assert all(text.startswith(f"Usage: kvbench {name} ") for name, text in zip(COMMANDS, others, strict=True))


@pytest.mark.fast
def test_list_is_readable_by_people_and_programs_without_torch() -> None:
    kinds = ["methods", "evaluators", "presets", "corpora"]
    told = printed([["list", kind, *more] for kind in kinds for more in ([], ["--format", "json"])], HEAVY)
    for text, data in zip(told[::2], told[1::2], strict=True):
        entries = orjson.loads(data)
        assert entries
        assert all(entry["name"] and entry["title"] for entry in entries)
        assert all(entry["name"] in text for entry in entries)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["rnu"], 2, "did you mean run?"),
        (["run", "--sample", "3"], 2, "--samples"),
        (["run", "--preset", "smolm2"], 2, "did you mean smollm2"),
        (["run", "--methods", "knrom"], 2, "did you mean knorm"),
        (["run", "--methods", "knorm:compresion_ratio=2"], 2, "compression_ratio"),
        (["run", "--evals", "countin"], 2, "did you mean counting"),
        ([*RUN, "--compression-ratio", "4"], 2, "lies in [0, 1)"),
        ([*RUN, "--output", "no/such/folder/r.json"], 2, "mkdir -p no/such/folder"),
        (["run", "--resume", "nothing"], 2, "unknown run 'nothing'"),
        (["run", "--resume", "nothing", "--context", "3"], 2, "--context cannot change"),
        (["show", "nothing"], 2, "unknown run"),
        (["list", "method"], 2, "methods"),
    ],
)
def test_mistakes_are_one_line_a_hint_and_an_exit_code(
    here: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, said: str
) -> None:
    assert main(args) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert list(here.iterdir()) == []


def test_a_run_from_start_to_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--output", "copy.json"]) == 0
    captured = capsys.readouterr()
    assert all(label in captured.out for label in ("baseline", "random", "knorm", "PPL"))
    assert "counting 3" in captured.err
    folder = only_run(here)
    assert results.load(here / "copy.json") == results.load(folder.path)

    assert main(["show", folder.name]) == 0
    assert capsys.readouterr().out == captured.out
    assert main(["show", "copy.json"]) == 0
    assert "knorm" in capsys.readouterr().out
    assert main(["show", folder.name, "--format", "json"]) == 0
    assert orjson.loads(capsys.readouterr().out)["complete"]
    assert main(["watch", folder.name]) == 0
    assert capsys.readouterr().out == captured.out
    assert main(["run", "--resume", folder.name]) == 0
    again = capsys.readouterr()
    assert again.out == captured.out
    assert "nothing is left to do" in again.err


@pytest.mark.usefixtures("at_hand")
def test_json_and_none_keep_stdout_clean(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--display", "json"]) == 0
    assert orjson.loads(capsys.readouterr().out)["complete"]
    assert main([*RUN, "--display", "none"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("at_hand")
def test_a_missing_model_has_its_own_exit_code(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--model", "missing"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-2:] == ["error: model 'missing' is not there", "try: use another --model"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_cleanly_and_says_how_to_go_on(here: Path, number: signal.Signals) -> None:
    process = kvbench("run", "--model", "stub", "--methods", "knorm", "--evals", "counting:ms=100", "--samples", "600", "--name", "mine")
    folder = RunFolder(here / "bench_results" / "mine")
    while not folder.state().done:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "kvbench run --resume mine" in err
    assert not folder.is_alive()
    assert folder.state().status == "interrupted"


def test_a_second_command_attaches_to_a_run_that_is_alive(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = kvbench("run", "--model", "stub", "--methods", "knorm", "--evals", "counting:ms=50", "--samples", "8", "--name", "mine")
    folder = RunFolder(here / "bench_results" / "mine")
    while not folder.is_alive():
        time.sleep(0.02)
    assert main(["run", "--resume", "mine"]) == 0
    second = capsys.readouterr()
    assert "attached" in second.err
    out, _ = first.communicate(timeout=60)
    assert out == second.out
    assert first.returncode == 0


def test_a_killed_supervisor_is_reported_with_the_way_on(here: Path) -> None:
    process = kvbench("run", "--model", "stub", "--methods", "knorm", "--evals", "counting:ms=100", "--samples", "600", "--name", "mine")
    folder = RunFolder(here / "bench_results" / "mine")
    while not folder.state().done:
        time.sleep(0.05)
    supervisor = folder.pid()
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "try: kvbench run --resume" in err


def test_watching_can_be_left_and_the_run_goes_on(here: Path) -> None:
    from stub_fixtures import stub_spec

    folder = start.create(stub_spec("ms=40", samples=1000), here, "mine")
    start.launch(folder)
    watcher = kvbench("watch", str(folder.path))
    assert watcher.stderr is not None
    assert watcher.stderr.readline()  # it watches: before that Ctrl-C would end it while it is still being loaded
    watcher.send_signal(signal.SIGINT)
    _, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 0
    assert "the run goes on" in err
    before = len(folder.state().done)
    while len(folder.state().done) == before:
        assert folder.is_alive()
        time.sleep(0.05)
    start.stop(folder)


def test_a_closed_pipe_is_quiet(here: Path) -> None:
    code = f"{sys.executable} -m kvbench list methods | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unexpected_error_is_one_line_and_its_traceback_a_file(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("boom\nsecond line")

    monkeypatch.setattr("kvbench.cli.show.find_run", broken)
    assert main(["show", "x"]) == ExitCode.INTERNAL == 70
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "unexpected RuntimeError: boom (traceback in " in err
    log = Path(err.rpartition("traceback in ")[2].rstrip(")\n"))
    assert "second line" in log.read_text()
    log.unlink()


def test_flags_go_over_the_preset(here: Path) -> None:
    from kvbench.cli.question import spec_of

    preset = spec_of({})
    assert preset.preset == "smollm2"
    flagged = spec_of({"samples": 2, "cache_dtype": "float32", "corpus": "wikitext2", "methods": "kivi:bits=2,int8", "evals": "counting"})
    assert (flagged.samples, flagged.model.cache_dtype, flagged.corpus.name) == (2, "float32", "wikitext2")
    assert (flagged.context, flagged.model.id) == (preset.context, preset.model.id)
    assert [m.label for m in flagged.methods] == ["baseline", "random", "kivi:bits=2", "int8"]
    assert [e.label for e in flagged.evaluators] == ["counting"]
    other = spec_of({"model": "Org/Name"})
    assert (other.preset, other.model.id, other.model.config) == (None, "Org/Name", None)
    assert spec_of({"preset": "qwen7b", "random_weights": True, "evals": "counting"}).model.config is not None


def test_local_paths_are_kept_whole(here: Path) -> None:
    from kvbench.cli.question import spec_of

    (here / "text.txt").write_text("words")
    assert spec_of({"corpus": "text.txt"}).corpus.name == str(here.resolve() / "text.txt")
    assert spec_of({"data_dir": "."}).corpus.data_dir == str(here.resolve())


def test_the_public_names_load_no_torch() -> None:
    code = (
        "import sys, kvbench; kvbench.RunSpec(); kvbench.run; kvbench.__version__;"
        "sys.exit(bool({'torch', 'transformers', 'textual'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(STUBS)}, check=False).returncode == 0
