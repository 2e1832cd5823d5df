"""``kvbench new-evaluator``, where it differs from ``new-method``; and both packages' types, against kvbench as it is installed."""

from __future__ import annotations

import os
import runpy
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_fixtures import HOME, forget_registries
from test_new_method import install, run

from kvbench.authoring import EVALUATOR, check_name, write_package
from kvbench.cli import main
from kvbench.evaluators.registered import EVALUATORS


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.fast
def test_it_says_what_it_wrote_and_what_comes_next(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-evaluator", "next_words"]) == 0
    out, err = capsys.readouterr()
    written = sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.is_file())
    assert sorted(out.splitlines()) == written
    assert [line.strip() for line in err.splitlines()[:4]] == [
        "next:",
        "python -m pip install -e kvbench-next-words",
        "kvbench list evaluators",
        "kvbench run --evals next_words",
    ]
    assert Path(err.splitlines()[4].removeprefix("guide: ")).read_text().startswith("# Adding an evaluator")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("NextWords", "is no name for an evaluator", "next_words"),
        ("", "is no name for an evaluator", "measure"),
        ("essential", "stands for several evaluators", "my_measure"),
        ("memory", "is there already", "my_memory"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_one_that_can(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, says: str, hint: str
) -> None:
    assert main(["new-evaluator", name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err.splitlines()[0]
    assert err.splitlines()[1].partition("#")[0].split() == ["try:", "kvbench", "new-evaluator", hint]
    assert os.listdir(here) == []
    check_name(hint, EVALUATOR)


@pytest.fixture
def package(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new package, installed for this process; its name is one that the template itself uses."""
    write_package("summary", here / "mine", EVALUATOR)
    install(here / "mine", here / "site")
    monkeypatch.syspath_prepend(str(here / "site"))
    monkeypatch.syspath_prepend(str(here / "mine"))
    forget_registries()
    yield here / "mine"
    monkeypatch.undo()
    forget_registries()
    for name in [name for name in sys.modules if name.startswith("kvbench_summary")]:
        del sys.modules[name]


@pytest.mark.fast
def test_its_own_tests_pass(package: Path) -> None:
    tests = runpy.run_path(str(package / "tests/test_summary.py"))
    found = [test for name, test in tests.items() if name.startswith("test_")]
    assert len(found) == 4
    for test in found:
        test()


@pytest.mark.fast
@pytest.mark.parametrize("name", ["record", "evaluator", "tensor", "class_var", "l2_norm"])
def test_no_name_breaks_the_template(here: Path, name: str) -> None:
    paths = write_package(name, here / "mine", EVALUATOR)
    for path in paths:
        assert "$" not in path.read_text()
        if path.suffix == ".py":
            compile(path.read_text(), path, "exec")
    value = tomllib.loads(paths[0].read_text())["project"]["entry-points"]["kvbench.evaluators"][name]
    module, _, cls = value.partition(":")
    source = (here / "mine" / module.replace(".", "/")).with_suffix(".py").read_text()
    assert source.count(f"class {cls}(Evaluator):") == 1
    assert name not in EVALUATORS.names()


def test_both_packages_are_typed_and_tidy(here: Path) -> None:
    """``mypy --strict`` as an author runs it: kvbench is another package, and ``py.typed`` is what opens its types.

    The house's own settings, which are strict and do not follow transformers, and its cache: a second instead of a quarter of a minute.
    """
    pytest.importorskip("mypy")
    write_package("key_mean", here / "method")
    write_package("next_words", here / "evaluator", EVALUATOR)
    ruff = tomllib.loads((HOME / "pyproject.toml").read_text())["tool"]["ruff"]
    common = ["--no-cache", "--isolated", "--line-length", str(ruff["line-length"]), "."]
    run("ruff", "check", "--select", ",".join(ruff["lint"]["select"]), *common, cwd=here / "evaluator", env=dict(os.environ))
    run("ruff", "format", "--diff", *common, cwd=here / "evaluator", env=dict(os.environ))
    settings = [f"--config-file={HOME / 'pyproject.toml'}", f"--cache-dir={HOME / '.mypy_cache'}"]
    run("mypy", *settings, "method", "evaluator", cwd=here, env={**os.environ, "PYTHONPATH": str(HOME)})
    assert not [path for path in here.rglob("*.py") if "type: ignore" in path.read_text()]
