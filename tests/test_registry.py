"""Plug-ins that cannot be used: a line in ``list``, left out of ``all`` with a note, and an error only where they are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from stub_fixtures import forget_registries, stub_spec, stubbed  # noqa: F401

from kvbench.cli import main
from kvbench.engine import start
from kvbench.engine.plan import complete, plan
from kvbench.errors import UsageError
from kvbench.methods.base import METHODS, expand
from kvbench.record import events as ev
from kvbench.spec import EvaluatorSpec, MethodSpec

METHOD = """
from dataclasses import dataclass, field
from typing import ClassVar
from kvbench.methods.base import Eviction
{before}
@dataclass(frozen=True)
class M(Eviction{bases}):
    name: ClassVar[str] = "{name}"
    title: ClassVar[str] = "A plug-in"
    paper: ClassVar[str] = "none"
    {more}
"""


def method(name: str, more: str = "", bases: str = "", before: str = "") -> str:
    return METHOD.format(name=name, more=more, bases=bases, before=before)


META = "class Meta(type(Eviction)):\n    @property\n    def variants(cls): raise SystemExit(9)\n"
CANNOT_LOAD = {
    "raises": ("raise RuntimeError('boom \\x1b[31m at import')", "RuntimeError: boom"),
    "lacks_a_module": ("import no_such_module_anywhere", "ModuleNotFoundError"),
    "is_no_python": ("def (", "SyntaxError"),
    "exits": ("import sys; print('junk on stdout'); sys.exit(3)", "SystemExit: 3"),
    "is_cancelled": ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
    "has_no_class": ("", "AttributeError"),
    "is_a_number": ("M = 42", "no subclass"),
    "is_a_function": ("def M(): pass", "no subclass"),
    "is_another_class": ("class M: name = 'is_another_class'", "no subclass"),
    "has_another_name": (method("some_other_name"), "named 'some_other_name'"),
    "has_no_paper": (method("has_no_paper", "paper = None"), "no text 'paper'"),
    "breaks_in_its_class": (method("breaks_in_its_class", before=META, bases=", metaclass=Meta"), "SystemExit: 9"),
}
CANNOT_BE_BUILT = {
    "needs_a_value": (method("needs_a_value", "k: int = field(kw_only=True)"), "missing 1 required"),
    "breaks_when_built": (method("breaks_when_built", "def __post_init__(self): raise ZeroDivisionError('no')"), "ZeroDivisionError"),
    "exits_when_built": (method("exits_when_built", "def __post_init__(self): raise SystemExit(4)"), "SystemExit: 4"),
    "has_bad_variants": (method("has_bad_variants", "variants: ClassVar = ('has_bad_variants:nope=1',)"), "unknown parameter"),
}

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install("name", source)``: a package whose entry point it is, as an installer would leave it."""
    site = tmp_path / "site"

    def add(name: str, code: str, *, group: str = "kvbench.methods", package: str = "", points: str = "") -> None:
        package = package or f"plug-{name}"
        module = package.replace("-", "_")
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points or f"[{group}]\n{name} = {module}:M\n")
        forget_registries()

    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    yield add
    monkeypatch.undo()
    forget_registries()


def listed(capsys: pytest.CaptureFixture[str], kind: str = "methods") -> dict[str, list[dict[str, str]]]:
    """Name → its entries in ``kvbench list``; stdout holds nothing else."""
    capsys.readouterr()
    assert main(["list", kind, "--format", "json"]) == 0
    found: dict[str, list[dict[str, str]]] = {}
    for entry in orjson.loads(capsys.readouterr().out):
        found.setdefault(entry["name"], []).append(entry)
    return found


def test_plug_ins_that_cannot_be_loaded_stop_nobody(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    before = [spec.label for spec in expand(["all"])]
    for name, (code, _) in CANNOT_LOAD.items():
        install(name, code)
    install("works", method("works"))
    entries = listed(capsys)
    for name, (_, why) in CANNOT_LOAD.items():
        (entry,) = entries[name]
        assert why in entry["error"]
        assert "\x1b" not in entry["title"]
        assert f"plug-{name} 1.0" in entry["title"]
        with pytest.raises(UsageError, match=f"'{name}' of package plug-{name}"):
            expand([name])
    assert {spec.label for spec in expand(["all"])} == {*before, "works"}
    assert [spec.label for spec in expand(["works,int8"])][2:] == ["works", "int8"]
    notes = complete(stub_spec().with_changes(methods=(), evaluators=())).notes
    assert len(notes) == len(CANNOT_LOAD)
    assert complete(stub_spec().with_changes(evaluators=())).notes == ()


def test_plug_ins_that_cannot_be_built_are_left_out_of_all(install: Install) -> None:
    for name, (code, _) in CANNOT_BE_BUILT.items():
        install(name, code)
    spec = complete(stub_spec().with_changes(methods=(), evaluators=()))
    assert not {m.name for m in spec.methods} & set(CANNOT_BE_BUILT)
    for name, (_, why) in CANNOT_BE_BUILT.items():
        assert any(name in note and why in note for note in spec.notes)


def test_a_name_that_is_kvbenchs_own_stays_its_own(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("int8", "baseline"):
        install(name, method(name))
    own, taken = listed(capsys)["int8"]
    assert own["family"] == "quantisation"
    assert "plug-int8 1.0" in taken["title"]
    assert "package kvbench " in taken["title"]
    assert METHODS.load("int8").__module__ == "kvbench.methods.int8"
    assert "int8" in {spec.name for spec in expand(["all"])}
    assert main(["run", "--dry-run", "--methods", "knorm"]) == 0
    assert main(["run", "--dry-run", "--methods", "knorm+int8"]) == 2
    assert "plug-int8" in capsys.readouterr().err
    with pytest.raises(UsageError, match="registered more than once"):
        start.run(stub_spec(methods="baseline int8"))


def test_a_name_that_two_packages_claim_is_neithers(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("mine", method("mine"), package="plug-one")
    install("mine", method("mine"), package="plug-two")
    (entry,) = listed(capsys)["mine"]
    assert "plug-one" in entry["title"]
    assert "plug-two" in entry["title"]
    assert "mine" not in {spec.name for spec in expand(["all"])}
    with pytest.raises(UsageError, match="registered more than once: package plug-"):
        expand(["mine"])


def test_names_that_no_list_can_hold_are_refused(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("all", "two words", "a+b")):
        install(name, method(name), package=f"plug-{number}")
    assert all("cannot be used" in listed(capsys)[name][0]["error"] for name in ("all", "two words", "a+b"))


def test_metadata_that_cannot_be_read_hides_no_other_package(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("torn", "", points="[kvbench.methods]\nno equals sign\n")
    install("works", method("works"))
    entries = listed(capsys)
    assert "works" in entries
    assert any("torn" in entry["title"] for group in entries.values() for entry in group if "error" in entry)


def test_evaluators_are_treated_alike(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("broken_one", "raise OSError('gone')", group="kvbench.evaluators")
    install("essential", "M = 1", group="kvbench.evaluators")
    install("perplexity", "M = 1", group="kvbench.evaluators")
    entries = listed(capsys, "evaluators")
    assert entries["broken_one"][0]["error"] == "OSError: gone"
    assert [len(entries[name]) for name in ("essential", "perplexity")] == [2, 2]
    assert main(["run", "--dry-run", "--methods", "knorm", "--evals", "essential"]) == 0
    assert main(["run", "--dry-run", "--methods", "knorm", "--evals", "broken_one"]) == 2


EVALUATOR = """
from dataclasses import dataclass
from typing import ClassVar
from kvbench.evaluators.base import Evaluator
from kvbench.spec import Unit
@dataclass(frozen=True)
class M(Evaluator):
    name: ClassVar[str] = "mine"
    title: ClassVar[str] = "A plug-in"
    def check(self, spec): {check}
    def units(self, spec, methods): {units}
"""
PLANS = {
    "checks": ("raise RuntimeError('no')", "return []", "RuntimeError: no"),
    "exits": ("raise SystemExit(0)", "return []", "SystemExit: 0"),
    "nothing": ("pass", "return None", "TypeError"),
    "no units": ("pass", "return ['mine/0']", "str where a unit"),
    "twice": ("pass", "return [Unit('mine/0', 'mine', 0, tuple(methods), 1)] * 2", "planned already"),
    "another's": ("pass", "return [Unit('a/0', 'audit', 0, tuple(methods), 1)]", "of another evaluator"),
    "no row": ("pass", "return [Unit('mine/0', 'mine', 0, ('ghost',), 1)]", "not in this run"),
}


@pytest.mark.parametrize("what", PLANS)
def test_an_evaluator_that_cannot_plan_is_an_error_of_who_named_it(what: str, install: Install) -> None:
    check, units, why = PLANS[what]
    install("mine", EVALUATOR.format(check=check, units=units), group="kvbench.evaluators", package=f"plans-{[*PLANS].index(what)}")
    spec = complete(stub_spec().with_changes(evaluators=(EvaluatorSpec("mine"),)))
    with pytest.raises(UsageError, match=f"evaluator 'mine' broke .*{why}"):
        plan(spec)


def test_a_cancel_is_no_plug_ins_failure(install: Install) -> None:
    install("cancels", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        METHODS.usable()


@pytest.mark.usefixtures("stubbed")
def test_what_was_left_out_is_in_the_journal_and_on_stderr(tmp_path: Path, install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("raises", "raise RuntimeError('boom')")
    spec = complete(stub_spec(samples=1)).with_changes(notes=complete(stub_spec().with_changes(methods=(), evaluators=())).notes)
    folder = start.create(spec, tmp_path / "runs")
    start.launch(folder)
    notes = [event.text for _, event in start.follow(folder) if isinstance(event, ev.NoteWritten)]
    assert [note for note in notes if "'raises' of package plug-raises" in note]
    assert main(["run", "--dry-run"]) == 0
    assert "RuntimeError: boom" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["baseline:x", "baseline:x=1", "int8:=1", "kvpress:", "snapkv+baseline:q", "int8:²", "random@²x"])
def test_odd_specs_are_refused_or_read_but_never_unexpected(text: str) -> None:
    assert main(["run", "--dry-run", "--methods", text]) in (0, 2)


def test_digests_do_not_hear_what_changes_no_figure() -> None:
    spec = stub_spec()
    assert spec.digest == spec.with_changes(notes=("a note",), method_timeout=5.0).digest
    assert spec.digest != spec.with_changes(methods=(MethodSpec("int4"),)).digest


@pytest.mark.parametrize("batch", ["²", "1,²", "0", "", "9" * 5000])
def test_batches_that_are_no_numbers_are_refused(batch: str) -> None:
    assert main(["speed", "--dry-run", "--batch", batch, "--methods", "int8"]) == 2
