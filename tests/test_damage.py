"""Damaged journals and results: what is whole is kept, what is not is told or refused, and nothing is unexpected."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from at_hand import at_hand, calm_run  # noqa: F401
from stub_fixtures import forget_registries, stub_spec, stubbed  # noqa: F401

from kvbench.cli import main
from kvbench.engine import start
from kvbench.engine.journal import EVENTS, SPEC, RunFolder
from kvbench.engine.soundness import Inspector
from kvbench.errors import ExitCode, ResultError
from kvbench.record import events as ev
from kvbench.record import results
from kvbench.spec import Unit

REFERENCE = Path(__file__).parents[1] / "bench_results" / "reference"
BOM = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of the stub engine that nothing disturbed; tests copy it."""
    with pytest.MonkeyPatch.context() as patch:
        use_stubs = stubbed.__wrapped__(patch)  # type: ignore[attr-defined]
        next(use_stubs)
        output = tmp_path_factory.mktemp("calm")
        calm_run(stub_spec("ms=0", methods="baseline random knorm", samples=6), output, "calm")
        next(use_stubs, None)
    return RunFolder(output / "calm")


@pytest.fixture
def copied(calm: RunFolder, tmp_path: Path, stubbed: None) -> RunFolder:
    return RunFolder(Path(shutil.copytree(calm.path, tmp_path / "run")))


def lines_of(folder: RunFolder) -> list[bytes]:
    return (folder.path / EVENTS).read_bytes().splitlines(keepends=True)


def put(folder: RunFolder, lines: list[bytes]) -> None:
    (folder.path / EVENTS).write_bytes(b"".join(lines))


def place(lines: list[bytes], event: str, number: int = 0) -> int:
    """Index of the line with the event of that name."""
    return [i for i, line in enumerate(lines) if line.startswith(b'{"event":"%s"' % event.encode())][number]


def resumed(folder: RunFolder) -> dict[str, Any]:
    assert start.resume(folder) == "resumed"
    for _ in start.follow(folder):
        pass
    return results.load(folder.path)


HALF: Callable[[bytes], bytes] = lambda line: line[: len(line) // 2] + b"\n"  # noqa: E731
ZEROED: Callable[[bytes], bytes] = lambda line: bytes(len(line) - 1) + b"\n"  # noqa: E731


@pytest.mark.parametrize("damage", [HALF, ZEROED])
@pytest.mark.parametrize(
    ("event", "number", "lost"),
    [
        ("RunStarted", 0, []),  # made again from the specification
        ("RecordMade", 4, ["counting/1"]),
        ("MethodStarted", 6, []),  # no fact: the unit holds as many as it tells
        ("UnitStarted", 3, []),  # the same
        ("UnitFinished", 3, ["counting/2"]),
        ("AuditRecorded", 1, ["audit/0"]),
        ("WorkerStarted", 0, []),
    ],
)
def test_a_lost_line_costs_the_unit_that_it_was_of_and_no_other(
    copied: RunFolder, damage: Callable[[bytes], bytes], event: str, number: int, lost: list[str]
) -> None:
    lines = lines_of(copied)
    at = place(lines, event, number)
    put(copied, [*lines[:at], damage(lines[at]), *lines[at + 1 :]])
    state, tail = copied.state(), copied.tail()
    told = [e.text for e in tail.poll() if isinstance(e, ev.NoteWritten)]
    assert sorted(set(state.units) - state.done) == lost
    assert state.status == ("interrupted" if lost else "finished")
    assert any(f"line {at + 1} of the journal cannot be read" in text for text in told)
    assert all(any(f"{unit} is to be done again" in text for text in told) for unit in lost if event != "UnitFinished")
    assert tail.damage
    assert f"line {at + 1}" in tail.damage


def test_without_the_count_of_facts_a_unit_that_touches_damage_is_done_again(copied: RunFolder) -> None:
    """As journals were before they told it."""
    lines = [orjson.dumps({k: v for k, v in orjson.loads(line).items() if k != "facts"}) + b"\n" for line in lines_of(copied)]
    at = place(lines, "MethodStarted", 6)
    put(copied, [*lines[:at], HALF(lines[at]), *lines[at + 1 :]])
    assert sorted(set(copied.state().units) - copied.state().done) == ["counting/1"]


@pytest.mark.usefixtures("at_hand")
@pytest.mark.parametrize("event", ["CorpusLoaded", "AuditRecorded", "UnitStarted", "RecordMade", "UnitFinished", "RunFinished"])
def test_a_run_with_a_zeroed_page_goes_on_to_the_same_numbers(copied: RunFolder, calm: RunFolder, event: str) -> None:
    raw, lines = (copied.path / EVENTS).read_bytes(), lines_of(copied)
    first = len(b"".join(lines[: place(lines, event, -1)])) - 30
    (copied.path / EVENTS).write_bytes(raw[:first] + bytes(600) + raw[first + 600 :])
    before = copied.state()
    if not set(before.units) - before.done:
        assert before.status == "finished"
        return
    after, whole = resumed(copied), results.load(calm.path)
    assert (after["records"], after["results"], after["complete"]) == (whole["records"], whole["results"], True)
    redone = [e.unit for e in copied.read() if isinstance(e, ev.UnitStarted)]
    assert not [unit for unit in before.done if redone.count(unit) > 1]
    if b"\n" in raw[first + 600 :]:  # the damaged bytes stay where they are; at the very end they are a torn line
        assert (copied.path / EVENTS).read_bytes()[first : first + 600] == bytes(600)


@pytest.mark.usefixtures("at_hand")
def test_what_is_resumed_says_what_it_does_again(copied: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(copied)
    at = place(lines, "RecordMade", 4)
    put(copied, [*lines[:at], HALF(lines[at]), *lines[at + 1 :]])
    assert main(["show", str(copied.path)]) == 0
    assert f"line {at + 1} cannot be read" in capsys.readouterr().err
    assert main(["run", "--resume", str(copied.path), "--display", "plain"]) == 0
    assert "counting/1 is to be done again" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(40))
def test_no_damage_is_unexpected_and_what_counts_as_done_is_whole(copied: RunFolder, calm: RunFolder, seed: int) -> None:
    """Pages zeroed, lines cut, left out, doubled and moved: a unit that is done has every record of the calm run."""
    rng, lines = random.Random(seed), lines_of(copied)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        kind = rng.randrange(4)
        if kind == 0:
            lines[at] = HALF(lines[at])
        elif kind == 1:
            lines[at] = ZEROED(lines[at])
        elif kind == 2:
            lines[at] = lines[at].rstrip(b"\n")[: rng.randrange(len(lines[at]))]  # runs into the next one
        else:
            lines[at : at + rng.randrange(1, 4)] = [rng.randbytes(30).replace(b"\n", b"") + b"\n"]
    put(copied, lines)
    try:
        state = copied.state()
    except ResultError:
        return
    whole = calm.state()
    for unit in state.done - {"audit/0"}:
        key = unit.partition("/")[2]
        for method in whole.methods:
            assert state.records["counting"][method][key] == whole.records["counting"][method][key]
    assert main(["show", str(copied.path)]) in (ExitCode.OK, ExitCode.RESULT)


def test_a_unit_of_which_it_is_unknown_what_it_was_measured_on_is_done_again(copied: RunFolder) -> None:
    """Weights could have changed before the run went on, and nobody would see it."""
    lines = lines_of(copied)
    at = place(lines, "ModelLoaded")
    put(copied, [*lines[:at], ZEROED(lines[at]), *lines[at + 1 :]])
    assert not copied.state().done


def test_a_journal_without_its_plan_and_without_a_specification_is_refused(copied: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(copied)
    put(copied, [HALF(lines[0]), *lines[1:]])
    (copied.path / SPEC).write_bytes(b"{")
    for command in (["show"], ["watch"], ["run", "--resume"]):
        assert main([*command, str(copied.path)]) == ExitCode.RESULT
        err = capsys.readouterr().err
        assert "line 1" in err
        assert "spec.json" in err


@pytest.mark.parametrize("what", ["folder", "binary", "nothing", "mark"])
def test_a_journal_that_is_none(copied: RunFolder, capsys: pytest.CaptureFixture[str], what: str) -> None:
    journal = copied.path / EVENTS
    raw = journal.read_bytes()
    journal.unlink()
    if what == "folder":
        journal.mkdir()
    else:
        journal.write_bytes({"binary": random.Random(1).randbytes(5000), "nothing": b"", "mark": BOM + raw}[what])
    assert main(["show", str(copied.path)]) == (ExitCode.OK if what == "mark" else ExitCode.RESULT)
    assert "error: " in capsys.readouterr().err or what == "mark"


# Results --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """The committed result with four of its rows."""
    data: dict[str, Any] = orjson.loads((REFERENCE / "result.json").read_bytes())
    kept = ("baseline", "random", "snapkv", "int8")
    data["results"] = [row for row in data["results"] if row["method"] in kept]
    data["spec"]["methods"] = [m for m in data["spec"]["methods"] if m["name"] in kept and not m["params"]]
    data["records"] = {name: {k: of[k] for k in kept} for name, of in data["records"].items()}
    return data


def changed(data: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = orjson.loads(orjson.dumps(data))
    at = copy
    for key in path[:-1]:
        at = at[key]
    if value is Ellipsis:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return copy


RECORD = ("records", "perplexity", "snapkv", "3")
FAULTS: list[tuple[tuple[Any, ...], Any, str]] = [
    ((*RECORD, "kl_hist"), ..., "records of perplexity, snapkv, 3"),
    ((*RECORD, "kl_hist"), {}, "records, perplexity, snapkv, 3"),
    ((*RECORD, "kl_hist"), {"99999": 1}, "records, perplexity, snapkv, 3"),
    ((*RECORD, "tokens"), 0, "records, perplexity, snapkv, 3"),
    ((*RECORD, "tokens"), "128", "records, perplexity, snapkv, 3"),
    ((*RECORD, "nll"), None, "records, perplexity, snapkv, 3"),
    ((*RECORD, "stored_bytes"), 0, "records, perplexity, snapkv, 3"),
    ((*RECORD, "ece_count"), [1], "records of perplexity, snapkv"),
    ((*RECORD,), 3, "records[...]"),
    (("records", "perplexity", "snapkv", "x"), {}, "records, perplexity, snapkv, x"),
    (("records", "perplexity", "nobody"), {}, "no row 'nobody'"),
    (("records", "speed"), [], "records[...]"),
    (("records", "memory", "int8", "batch=1,context=512", "batch"), 0, "batch=1,context=512"),
    (("records", "speed", "int8", "batch=1,context=512/repeat=0", "decode_s"), 0, "repeat=0"),
    (("results", 1, "method"), "", "no row 'random'"),
    (("results", 1, "method"), "baseline", "no row 'random'"),
    (("spec", "methods", 1, "name"), 3, "methods[1].name"),
    (("results", 1, "audit_checks"), 7, "results[1].audit_checks"),
    (("results", 1, "measured"), [{"metric": 1}], "results[1].measured[0].metric"),
    (("results", 1, "kl"), "much", "results[1].kl"),
    (("model", "layers"), "many", "model.layers"),
    (("model", "calibration"), [1], "model.calibration"),
    (("environment", "memory_bytes"), -1, "environment.memory_bytes"),
    (("corpus", "name"), 5, "corpus.name"),
    (("spec", "samples"), "8", "samples"),
    (("spec", "methods"), 4, "methods"),
    (("spec",), {}, ""),
    (("lost",), {"perplexity/1": None}, "lost"),
    (("seconds",), -1e12, "seconds"),
    (("prepared",), {"perplexity": 3}, "prepared"),
]


@pytest.mark.parametrize(("path", "value", "said"), FAULTS)
def test_a_damaged_field_is_refused_with_its_place(
    reference: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], path: tuple[Any, ...], value: Any, said: str
) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(orjson.dumps(changed(reference, path, value)))
    codes = [main(["show", str(file)]), main(["report", str(file)]), main(["compare", str(file), str(file)])]
    err = capsys.readouterr().err
    if path == ("spec",):
        assert set(codes) <= {ExitCode.OK, ExitCode.RESULT}
        return
    assert codes[:2] == [ExitCode.RESULT] * 2
    assert codes[2] in (ExitCode.OK, ExitCode.RESULT)  # it reads no records
    assert str(file) in err
    assert said in err
    assert "try: " in err
    assert "unexpected" not in err


def test_the_error_itself_is_kept_as_the_cause(reference: dict[str, Any]) -> None:
    from kvbench.record.summary import summarise
    from kvbench.record.unreadable import figures_of

    state = results.to_state(changed(reference, (*RECORD, "kl_hist"), ...))
    with pytest.raises(ResultError) as caught, figures_of("a file"):
        summarise(state)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(KeyError):  # of a program's own data it is an error like others
        summarise(state)


@pytest.mark.parametrize("content", [BOM, b""])
def test_a_mark_is_no_part_of_a_result(reference: dict[str, Any], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content + orjson.dumps(reference))
    assert results.load(tmp_path) == reference


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\0" * 4096, b"\xff\xfe{\0}\0", b'{"schema": ' + b"9" * 5000 + b"}", b"{" + b'"a":{' * 50_000]
)
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(ResultError):
        results.load(tmp_path)


def test_names_that_no_file_can_have_are_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x" * 5000, "a\0b", "/dev/null", str(tmp_path)):
        for command in (["show", name], ["report", name], ["compare", name, name], ["watch", name], ["run", "--resume", name]):
            assert main(command) in (ExitCode.USAGE, ExitCode.RESULT), command
    assert "unexpected" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["samples = " + "9" * 5000, "a = " + "[" * 50_000, "samples = 9223372036854775807", "context = 0", "x = 1"]
)
def test_a_preset_that_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    assert main(["run", "--preset", str(tmp_path / "p.toml"), "--methods", "int8", "--dry-run"]) == ExitCode.RESULT
    assert "p.toml" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"hidden_size": 2**63 - 1}, {"num_hidden_layers": 10**9}, {"vocab_size": -(2**62)}])
def test_sizes_that_no_model_has_are_refused_at_once(copied: RunFolder, change: dict[str, int]) -> None:
    plain = orjson.loads((copied.path / SPEC).read_bytes())
    plain["model"]["config"] = {"model_type": "llama", **change}
    (copied.path / SPEC).write_bytes(orjson.dumps(plain))
    with pytest.raises(ResultError, match=r"spec\.json.*larger than any model's"):
        copied.spec()


def test_published_figures_that_cannot_be_are_refused(tmp_path: Path) -> None:
    from kvbench.errors import PublishedError
    from kvbench.published import load

    for text in ("a = " + "9" * 5000, "a = " + "[" * 50_000):
        (tmp_path / "p.toml").write_text(text)
        with pytest.raises(PublishedError, match=r"p\.toml"):
            load(tmp_path)


@pytest.mark.parametrize("key", ["num_attention_heads", "num_key_value_heads", "num_hidden_layers", "head_dim", "vocab_size"])
def test_a_config_of_nothing_is_refused(key: str) -> None:
    from kvbench.errors import UnsupportedModel
    from kvbench.models.shape import shape_of

    config = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "vocab_size": 9}
    assert shape_of(config).head_dim == 4
    with pytest.raises(UnsupportedModel, match=f"its {key} is 0"):
        shape_of({**config, key: 0})


@pytest.mark.parametrize("step", ["4 bits", 4, 0.5])
def test_a_rung_of_a_ladder_is_named_by_words_or_numbers(step: object) -> None:
    from kvbench.record.schema import check_record

    check_record("reconstruction", {"ladder": "bits", "step": step, "method": "kivi:bits=4", "failed": "no room"})
    with pytest.raises(ResultError, match=r"record of reconstruction, step"):
        check_record("reconstruction", {"ladder": "bits", "step": None})


def test_damage_after_a_resume_costs_nothing_that_the_resume_does_again_whole() -> None:
    """A unit that was under way before a resume is begun anew after it: a line lost in between is no part of it."""
    unit = Unit("counting/0", "counting", 0, ("baseline",))
    journal = Inspector(lambda _: pytest.fail("the plan is there"), _units={unit.id: unit}, _methods=frozenset(unit.methods))
    sound: list[ev.Event] = []
    for event in (ev.ModelLoaded(1.0, {"id": "stub"}, 1.0), ev.UnitStarted(2.0, unit.id), ev.RunResumed(3.0, 0)):
        journal.take(1, event, sound)
    journal.lose(4, "torn")
    for event in (ev.UnitStarted(5.0, unit.id), ev.UnitFinished(6.0, unit.id, 1.0, facts=0)):
        journal.take(5, event, sound)
    assert not journal.again
    assert any(isinstance(event, ev.UnitFinished) for event in sound)
