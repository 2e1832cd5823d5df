"""stdout and stderr in any encoding, closed or full; and nothing that a file says orders a terminal about."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from kvbench.cli import main
from kvbench.engine.journal import EVENTS, RunFolder
from kvbench.printable import FALLBACK, printable
from kvbench.record.events import NoteWritten, encode

REFERENCE = Path(__file__).parents[1] / "bench_results" / "reference"
ORDERS = "\x1b[31m\x9b2J\x07\r\u202e\u2066\x1b]0;owned\x07\x7f"
ORDERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """``kvbench`` as the shell starts it; ``{kvbench}`` stands for it."""
    program = f"{sys.executable} -m kvbench"
    return subprocess.run(
        ["bash", "-c", command.replace("{kvbench}", program)], capture_output=True, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_encoding_is_written_to(encoding: str) -> None:
    done = shell(f"{{kvbench}} show {REFERENCE}", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    assert "snapkv" in text
    assert "\\u" not in text  # what is shown of the reference has signs that are alike


def test_a_sign_that_an_encoding_lacks_is_written_by_one_alike() -> None:
    assert "Δ 2× ± …".encode("ascii", FALLBACK) == b"d 2x +- ..."
    assert "Δ 2×".encode("latin-1", FALLBACK) == b"d 2\xd7"
    assert "日".encode("ascii", FALLBACK) == rb"\u65e5"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (f"{{kvbench}} show {REFERENCE} >&-", 5, b"error: stdout cannot be written: "),
        (f"{{kvbench}} show {REFERENCE} >/dev/full", 5, b"error: stdout cannot be written: No space left on device"),
        ("{kvbench} --help >/dev/full", 5, b"error: stdout cannot be written: No space left on device"),
        ("{kvbench} list presets 2>&-", 0, b""),
        ("{kvbench} show nothing 2>&-", 2, b""),
        ("{kvbench} show nothing 2>/dev/full", 2, b""),
        ("{kvbench} list presets <&-", 0, b""),
        ("{kvbench} show nothing >&- 2>&- <&-", 2, b""),
        (f"{{kvbench}} show {REFERENCE} | head -c 1; exit ${{PIPESTATUS[0]}}", 0, b""),
    ],
)
def test_a_stream_that_is_closed_or_full_is_a_clear_end(command: str, code: int, said: bytes) -> None:
    done = shell(command)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert b"unexpected" not in done.stderr


def test_what_a_closed_stdout_leaves_free_is_not_written_into_a_file(tmp_path: Path) -> None:
    """The next file that is opened would be descriptor 1, and would get what is printed."""
    code = f"from kvbench.displays.streams import prepare; prepare(); f = open({str(tmp_path / 'f')!r}, 'w'); print('lost', flush=True)"
    subprocess.run(["bash", "-c", f'{sys.executable} -c "{code}" >&-'], capture_output=True, check=False)
    assert (tmp_path / "f").read_text() == ""


def test_orders_become_visible_and_json_reads_them_back() -> None:
    said = printable(f"a{ORDERS}b\n\tc")
    assert not ORDERING.search(said)
    assert orjson.loads(f'"{printable("a" + ORDERS)}"') == f"a{ORDERS}"
    assert said.endswith("b\n\tc")
    assert printable("\ud800") == "\\ud800"


def hostile(data: bytes) -> bytes:
    """The reference with orders in its names and messages."""
    result = orjson.loads(data)
    old, new = "snapkv", f"snapkv:x={ORDERS}"
    for row in result["results"]:
        if row["method"] == old:
            row |= {"method": new, "status": "failed", "error": f"boom {ORDERS}", "error_kind": ORDERS}
        row["method_name"] += ORDERS
    for of in result["records"].values():
        of[new] = of.pop(old)
    for method in result["spec"]["methods"]:
        if method["name"] == old:
            method["params"] = [["x", ORDERS]]
    result |= {"run": f"run {ORDERS}", "lost": {f"perplexity/{ORDERS}": ORDERS}}
    result["corpus"]["name"] = result["model"]["id"] = result["environment"]["cpu"] = ORDERS
    return orjson.dumps(result)


@pytest.fixture(scope="module")
def hostile_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("hostile") / "result.json"
    file.write_bytes(hostile((REFERENCE / "result.json").read_bytes()))
    return file


@pytest.mark.parametrize(
    "command",
    [
        lambda file: ["show", file],
        lambda file: ["show", file, "--format", "json"],
        lambda file: ["report", file],
        lambda file: ["report", file, "--format", "markdown"],
        lambda file: ["compare", file, str(REFERENCE)],
        lambda file: ["compare", str(REFERENCE), file, "--format", "csv"],
        lambda file: ["compare", str(REFERENCE), file, "--format", "json"],
        lambda file: ["show", f"no{ORDERS}"],
        lambda file: ["run", "--preset", f"no{ORDERS}"],
        lambda file: ["run", f"--no{ORDERS}"],
        lambda file: ["run", "--methods", f"no{ORDERS}"],
        lambda file: ["list", f"no{ORDERS}"],
    ],
)
def test_names_and_messages_never_reach_a_terminal_raw(
    hostile_file: Path, capsys: pytest.CaptureFixture[str], command: Callable[[str], list[str]]
) -> None:
    main(command(str(hostile_file)))
    said = capsys.readouterr()
    assert "\\u001b" in said.out + said.err or "\\x1b" in said.err  # click quotes what it names
    assert not ORDERING.search(said.out), said.out
    assert not ORDERING.search(said.err), said.err


def test_a_coloured_comparison_has_only_its_own_colours(
    hostile_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    main(["compare", str(hostile_file), str(REFERENCE)])
    said = capsys.readouterr().out
    colours = set(re.findall("\x1b\\[[0-9;]*m", said))
    assert colours
    assert "\x1b[31m\\u009b" not in said
    assert not ORDERING.search(re.sub("\x1b\\[[0-9;]*m", "", said))


def test_a_live_display_writes_no_orders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kvbench.spec import RunSpec

    folder = RunFolder.create(RunSpec(), tmp_path, "mine")
    (folder.path / EVENTS).write_bytes(encode(NoteWritten(1.0, f"note {ORDERS}")))
    main(["watch", str(folder.path), "--display", "plain"])
    said = capsys.readouterr().err
    assert "note \\u001b" in said
    assert not ORDERING.search(said)


def test_the_dashboard_is_given_nothing_that_orders_a_terminal_about() -> None:
    from kvbench.record import events as ev
    from kvbench.spec import RunSpec
    from kvbench.tui.reading import Reading

    label, unit = f"x{ORDERS}", f"u{ORDERS}"
    units = [{"id": unit, "evaluator": "perplexity", "index": 0, "methods": [label], "steps": 1}]

    class Feed:
        def poll(self) -> list[ev.Event]:
            return [
                ev.RunStarted(0.0, RunSpec().to_plain(), units, [label], "0", 1),
                ev.UnitStarted(1.0, unit),
                ev.MethodStarted(1.0, unit, label),
                ev.MethodFailed(2.0, unit, label, f"boom {ORDERS}", "kind"),
                ev.NoteWritten(2.0, ORDERS),
                ev.UnitFinished(3.0, unit, 1.0),
            ]

    reading = Reading(Feed())
    assert reading.advance()
    (row,) = reading.state.methods.values()
    said = [row.label, str(row.error), str(row.failed_in), *reading.state.units, *(line.text for line in reading.log)]
    assert row.units_done == 1
    assert len(said) > 5
    assert not ORDERING.search("".join(said))
