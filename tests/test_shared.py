"""A result says nothing of the machine's own affairs, and still says which weights and which text."""

from __future__ import annotations

import getpass
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pytest
from stub_fixtures import stub_spec, stubbed  # noqa: F401

from kvbench.engine.journal import SCHEMA
from kvbench.record import events as ev
from kvbench.record import results
from kvbench.record.redacted import Sharing
from kvbench.record.state import RunState, replay
from kvbench.record.summary import rows
from kvbench.spec import CorpusSpec, ModelSpec, RunSpec

TOKEN = "hf_abcdefghijklmnop"


@pytest.fixture(params=["home", "cwd", "tmp", "elsewhere"])
def private(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder under which everything lies, and a machine with names that can be found."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("LOGNAME", "jane.doe")
    monkeypatch.setattr(socket, "gethostname", lambda: "lab-7.example.org")
    monkeypatch.setenv("HOME", "/home/jane.doe")
    folders = {"home": Path.home(), "cwd": Path.cwd(), "tmp": Path(tempfile.gettempdir()), "elsewhere": Path("/mnt/secret project")}
    return folders[request.param] / "My Models äö"


def spec_of(private: Path) -> RunSpec:
    model = ModelSpec(id=str(private / "tiny llama"), config={"model_type": "llama", "_name_or_path": str(private / "tiny llama")})
    corpus = CorpusSpec(name=str(private / "book one.txt"), data_dir=str(private / "data"))
    return stub_spec(methods="baseline knorm").with_changes(model=model, corpus=corpus)


def state_of(private: Path) -> RunState:
    spec = spec_of(private)
    unit = {"id": "u", "evaluator": "counting", "index": 0, "methods": ["baseline", "knorm"], "steps": 2}
    who = f"{getpass.getuser()}@lab-7.example.org"
    said = f"No such file: '{private / 'tiny llama'}/model.safetensors' for {who} with {TOKEN}, see /opt/x/y.log"
    return replay([
        ev.RunStarted(0.0, spec.to_plain(), [unit], ["baseline", "knorm"], "0.1.0", SCHEMA),
        ev.ModelLoaded(1.0, {"id": spec.model.id, "weights_hash": "beef"}, 1.0),
        ev.CorpusLoaded(1.0, {"name": "book one.txt", "source": str(private / "book one.txt"), "content_hash": "cafe"}),
        ev.EvaluatorPrepared(1.0, "counting", {"source": str(private / "data" / "q.jsonl"), "left_out": {"a": said}}),
        ev.RecordMade(2.0, "u", "counting", "baseline", "0", {"value": 12.0, "tokens": 3, "reason": said}),
        ev.AuditRecorded(2.0, "knorm", "no-op", {"ledger": {"passed": False, "detail": said}}),
        ev.MethodFailed(2.0, "u", "knorm", said, "OSError"),
        ev.UnitLost(3.0, "u", said),
        ev.RunFinished(4.0, "result.json", 4.0),
    ])  # fmt: skip


@pytest.mark.usefixtures("stubbed")
def test_a_result_holds_no_path_name_or_secret(private: Path) -> None:
    text = results.dumps(results.build(state_of(private), "mine")).decode()
    secrets = (str(private), private.name, "/home/", str(Path.cwd()), tempfile.gettempdir() + "/", TOKEN, "jane.doe", "lab-7", "/opt/x")
    assert [secret for secret in secrets if secret in text] == []
    assert all(kept in text for kept in ("tiny llama", "book one.txt", "beef", "cafe", "No such file", "model.safetensors", "y.log"))


@pytest.mark.usefixtures("stubbed")
def test_it_is_still_a_result(private: Path, tmp_path: Path) -> None:
    state = state_of(private)
    results.save(results.build(state, "mine"), tmp_path / "result.json")
    found = results.to_state(results.load(tmp_path / "result.json"))
    assert found.spec is not None
    assert (found.spec.model.id, found.spec.corpus.name, found.spec.corpus.data_dir) == ("tiny llama", "book one.txt", "data")
    assert [(r.label, r.perplexity) for r in rows(found)] == [(r.label, r.perplexity) for r in rows(state)]


@pytest.mark.parametrize(
    "text",
    ["Qwen/Qwen2.5-7B", "https://huggingface.co/a/b/c", "and/or", "14KiB/token", "speed/0", "batch=1,context=512/repeat=0", "a / b / c"],
)
def test_what_is_no_path_stays(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "Qwen/Qwen2.5-7B")
    assert Sharing({}).facts({text: [text]}) == {text: [text]}
    assert Sharing({}).messages(text) == text


def test_a_label_that_holds_a_path_is_the_same_everywhere() -> None:
    spec: dict[str, Any] = {"methods": [{"name": "mine", "params": [["file", "/home/jane/a b/c.bin"]]}]}
    share = Sharing(spec)
    assert share.facts("mine:file=/home/jane/a b/c.bin") == "mine:file=c.bin"
    assert share.facts(spec)["methods"][0]["params"] == [["file", "c.bin"]]


def test_what_a_model_wrote_is_left_as_it_is() -> None:
    record = {"text": f"cd {os.getcwd()}/x", "value": 1.0}
    assert Sharing({}).record(record) == record


def test_the_committed_reference_holds_none() -> None:
    reference = orjson.loads((Path(__file__).parents[1] / "bench_results" / "reference" / "result.json").read_bytes())
    clean = {key: Sharing({}).facts(reference[key]) for key in ("spec", "environment", "model", "corpus", "lost")}
    assert clean == {key: reference[key] for key in clean}
