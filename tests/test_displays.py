"""What a reader sees: lines while a run goes on, a table at its end, JSON for programs."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from stub_fixtures import stub_spec, stubbed  # noqa: F401

from kvbench.displays import ending
from kvbench.displays.choosing import NAMES, choose
from kvbench.displays.full import Full
from kvbench.displays.json import Json
from kvbench.displays.plain import Plain
from kvbench.engine.journal import SCHEMA, RunFolder
from kvbench.figures import Grid, Table
from kvbench.metrics.row import Row
from kvbench.record import events as ev
from kvbench.record import results
from kvbench.record.state import MethodState, RunState, apply, replay
from kvbench.spec import RunSpec

pytestmark = pytest.mark.usefixtures("stubbed")
METHODS = ["baseline", "knorm"]
LONG = "v_lowrank:basis=random,bits=4,rank=32"


def story() -> list[ev.Event]:
    """A short run in which one method fails."""
    spec = stub_spec(methods=" ".join(METHODS), samples=1)
    unit = {"id": "counting/0", "evaluator": "counting", "index": 0, "methods": METHODS, "steps": 2}
    model = {"id": "stub", "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64, "dtype": "float32", "cache_dtype": "bfloat16"}
    return [
        ev.RunStarted(0.0, spec.to_plain(), [unit], METHODS, "0.1.0", SCHEMA),
        *(ev.StageEntered(0.0, "fetching", done, 10) for done in range(11)),
        ev.ModelLoaded(1.0, model, 1.0),
        ev.UnitStarted(2.0, "counting/0"),
        ev.RecordMade(2.0, "counting/0", "counting", "baseline", "0", {"value": 12.0, "tokens": 3}),
        ev.MethodFailed(2.0, "counting/0", "knorm", "it broke", "ValueError"),
        ev.UnitFinished(3.0, "counting/0", 1.0),
        ev.RunFinished(4.0, "result.json", 4.0),
    ]


def tell(display: Plain) -> None:
    state = RunState()
    for event in story():
        state = apply(state, event)
        display.tell(state, event)


def test_plain_writes_a_line_for_each_unit_failure_and_quarter_of_a_stage() -> None:
    out = io.StringIO()
    tell(Plain(out))
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert lines[0] == "2 methods, 1 units"
    assert [line for line in lines if line.startswith("fetching")] == [f"fetching {p}%" for p in (0, 30, 60, 90)]
    assert "knorm failed: it broke" in lines
    assert any(line.startswith("1/1  counting 1") for line in lines)
    assert "\033" not in out.getvalue()


def test_on_a_terminal_a_stage_is_one_line_that_is_wiped() -> None:
    out = io.StringIO()
    out.isatty = lambda: True  # type: ignore[method-assign]
    tell(Plain(out))
    assert out.getvalue().count("fetching") == 11
    assert "fetching 100%\r\033[K" in out.getvalue()


def full_row(label: str) -> Row:
    return Row(
        label, "done", 1.0, None, "real", 6, 23.4567, 22.0, 24.9, 12.345, -10.25, 14.5, 0.01234, 0.9512, 4.0, 3 * 2**20,
        900 * 2**20, "resident", 123.456, 0.0654,
    )  # fmt: skip


def test_the_table_has_every_figure_within_140_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [full_row("baseline"), full_row(LONG), replace(full_row("knorm"), status="failed", error="it broke " * 40)]
    monkeypatch.setattr(ending, "rows", lambda state: found)
    text = ending.render(replay(story()))
    assert max(map(len, text.splitlines())) <= 140
    figures = "23.46 ± 1.45|+12.35 [-10.25, +14.50]|0.0123|95.1|4.00\N{MULTIPLICATION SIGN}|3.00|123.5|65.4|900|real|22.5 KiB"
    for figure in figures.split("|"):
        assert figure in text
    assert "v_lowrank:basis=random," in text
    assert "knorm failed: it broke" in text


def test_columns_that_nothing_filled_are_left_out() -> None:
    text = ending.render(replay(story()))
    assert "PPL" in text
    assert "tokens" not in text.splitlines()[3]
    assert "KL" not in text


def test_figures_follow_the_table_and_long_ones_are_cut_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    long = Table("words", "Many rows", ["method", "text"], [["knorm", f"row {i}"] for i in range(60)], 2)
    grids = [Grid("map", "Found", f"method {i}", ["a"], ["b"], [[1.0]]) for i in range(11)]
    tall = Grid("tall", "Found", "method", [str(i) for i in range(30)], ["b"], [[1.0]] * 30)
    monkeypatch.setattr(ending, "figures", lambda state: {"tasks": [long, *grids, tall]})
    text = ending.render_run(replay(story()), "mine")
    assert text.startswith(ending.render(replay(story())))
    assert "tasks: Many rows" in text
    assert (text.count("row 15"), text.count("row 16")) == (1, 0)
    assert ("method 7" in text, "method 8" in text) == (True, False)
    assert text.endswith("left out: 44 rows of words; 3 heat maps of map; 1 heat map of tall\nall of it: kvbench report mine\n")
    monkeypatch.setattr(ending, "figures", lambda state: {})
    assert ending.render_run(replay(story()), "mine") == ending.render(replay(story()))


def test_without_perplexity_the_main_scores_make_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"arc_easy": 0.625, "gsm8k": 0.4}
    monkeypatch.setattr(ending, "rows", lambda state: [Row("knorm", "done", 1.0, None, "real", headline=scores)])
    lines = ending.render(replay(story())).splitlines()
    assert [line.split() for line in lines[3:4]] == [["method", "arc_easy", "gsm8k", "audit"]]
    assert lines[6].split() == ["knorm", "62.5", "40.0", "real"]


def test_a_run_that_goes_on_says_how_far_it_is() -> None:
    text = ending.render(replay(story()[:-2]))
    assert "0 of 1 units are done" in text


def finished(folder: Path) -> RunFolder:
    run = RunFolder.create(stub_spec(methods=" ".join(METHODS), samples=1), folder)
    with run.writer() as journal:
        for event in story():
            journal.append(event)
    return run


def test_stdout_is_data_and_stderr_is_talk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path)
    results.save(results.build(run.state(), run.name), run.result)
    display = Plain()
    assert display.watch(run, live=False) == "over"
    display.report(run, run.state())
    captured = capsys.readouterr()
    assert captured.out == ending.render(run.state())
    assert f"result: {run.result}" in captured.err


def test_json_prints_the_result_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path)
    display = Json()
    display.watch(run, live=False)
    display.report(run, run.state())
    captured = capsys.readouterr()
    assert orjson.loads(captured.out) == results.build(run.state(), run.name)
    assert captured.err == ""


def test_auto_is_the_dashboard_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(choose("auto")) is Plain
    for stream in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    assert type(choose("auto")) is Full
    assert len({type(choose(name)) for name in NAMES}) == 4


@pytest.mark.parametrize(("left", "outcome"), [("finished", "over"), ("detached", "detached"), ("cancel", "cancel")])
def test_the_dashboards_ends_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str, outcome: str) -> None:
    monkeypatch.setattr("kvbench.tui.run_dashboard", lambda path, live: left)
    assert Full().watch(finished(tmp_path), live=True) == outcome


def test_what_evaluators_did_without_is_named_under_the_table() -> None:
    row = MethodState("baseline", "done")
    prepared = {"tasks": {"left_out": {"arc_easy": "no file", "winogrande": "no file"}}, "needle": {"filler": "x"}}
    state = RunState(status="finished", spec=RunSpec(), methods={"baseline": row}, prepared=prepared)
    assert "tasks went without arc_easy, winogrande: kvbench report says why\n" in ending.render(state)
