"""``kvbench new-method``: what it writes works at once in list, run and verify, and it writes all of it or nothing."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import orjson
import pytest
from stub_fixtures import forget_registries

from kvbench import authoring
from kvbench.authoring import default_folder, write_package
from kvbench.cli import main
from kvbench.errors import UsageError
from kvbench.instruments import verify
from kvbench.instruments.tiny import FAMILIES
from kvbench.instruments.verify import conformance
from kvbench.methods.base import METHODS


def install(package: Path, site: Path) -> None:
    """What an editable install does, without an installer: the metadata in ``site``, where the interpreter looks."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items()) for group, points in groups]
    (info / "entry_points.txt").write_text("".join(lines))


def seeing(*folders: Path) -> dict[str, str]:
    """An environment in which packages of ``folders`` are installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "PYTHONDONTWRITEBYTECODE": "1"}


def run(*command: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=cwd, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.fast
def test_it_says_what_it_wrote_and_what_comes_next(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-method", "key_mean"]) == 0
    out, err = capsys.readouterr()
    written = sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.is_file())
    assert sorted(out.splitlines()) == written
    assert [line.strip() for line in err.splitlines()[:4]] == [
        "next:",
        "python -m pip install -e kvbench-key-mean",
        "kvbench verify key_mean",
        "kvbench run --methods key_mean",
    ]
    guide = Path(err.splitlines()[4].removeprefix("guide: "))
    assert guide.read_text().startswith("# Adding a method")
    assert os.listdir(here) == ["kvbench-key-mean"]


def test_the_new_method_is_listed(here: Path) -> None:
    """In a process of its own: the package's metadata is all that ties it to kvbench."""
    write_package("key_mean", here / "mine")
    install(here / "mine", here / "site")
    listed = orjson.loads(run("kvbench", "list", "methods", "--format", "json", cwd=here, env=seeing(here / "mine", here / "site")).stdout)
    (entry,) = [e for e in listed if e["name"] == "key_mean"]
    assert (entry["title"], entry["family"]) == ("Key mean", "eviction")
    assert {"n_sink", "compression_ratio"} <= {p["name"] for p in entry["parameters"]}


@pytest.fixture
def package(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new package, installed for this process; its name is one that the template itself uses."""
    write_package("eviction", here / "mine")
    install(here / "mine", here / "site")
    monkeypatch.syspath_prepend(str(here / "site"))
    monkeypatch.syspath_prepend(str(here / "mine"))
    forget_registries()
    yield here / "mine"
    forget_registries()
    for name in [name for name in sys.modules if name.startswith("kvbench_eviction")]:
        del sys.modules[name]


@pytest.mark.fast
def test_run_takes_it_alone_composed_and_with_a_budget(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--methods", "eviction:n_sink=2,eviction+int8,eviction@4x", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert all(label in plan for label in ("eviction:n_sink=2", "eviction+int8", "eviction@4x"))


def test_it_is_verified(package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On each family at the sizes of ``verify``, for which shorter ones stand in here, and audited."""
    given, tried = verify.Sizes(), list[tuple[str, verify.Sizes]]()

    def shorter(method: Any, family: str, sizes: verify.Sizes, stage: Any) -> list[verify.Check]:
        tried.append((family, sizes))
        return conformance(method, family, verify.Sizes(context=20, continuation=20, layers=2), stage)

    monkeypatch.setattr(verify, "conformance", shorter)
    assert main(["verify", "eviction"]) == 0
    verdict = capsys.readouterr().out.splitlines()
    assert tried == [(family, given) for family in FAMILIES]
    assert verdict[-1].split()[:4] == ["ok", "audit", "label", "real"]
    assert all(line.startswith("ok") for line in verdict[2:])
    assert len(verdict) > 20


@pytest.mark.fast
def test_its_own_tests_pass(package: Path) -> None:
    tests = runpy.run_path(str(package / "tests/test_eviction.py"))
    found = {name: test for name, test in tests.items() if name.startswith("test_")}
    assert len(found) == 4
    for test in found.values():
        test(**{"family": "qwen2"} if "family" in signature(test).parameters else {})


def test_a_real_installer_finds_it(here: Path) -> None:
    """pip in a throw-away environment, offline, with the build backend that is at hand."""
    pytest.importorskip("hatchling")
    write_package("key_mean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "env"], check=True)
    (site,) = (here / "env").glob("lib/python*/site-packages")
    (site / "outside.pth").write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in sys.path if p.endswith("site-packages")))
    python, folder = str(here / "env/bin/python"), str(default_folder("key_mean"))
    pip = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-e", folder]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = subprocess.run([python, "-m", "kvbench", "list", "methods"], capture_output=True, text=True, check=True)
    assert "key_mean" in listed.stdout


def test_what_is_written_is_as_tidy_as_the_rest(here: Path) -> None:
    write_package("key_mean", here / "mine")
    ruff = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"]["ruff"]
    common = ["--no-cache", "--isolated", "--line-length", str(ruff["line-length"]), "."]
    run("ruff", "check", "--select", ",".join(ruff["lint"]["select"]), *common, cwd=here / "mine", env=dict(os.environ))
    run("ruff", "format", "--diff", *common, cwd=here / "mine", env=dict(os.environ))
    score = (here / "mine/kvbench_key_mean/key_mean.py").read_text().split("class KeyMean")[1].split("\n\n\n#")[0]
    assert len([line for line in score.splitlines() if line.strip()]) < 20


@pytest.mark.fast
@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("KeyMean", "is no name for a method", "key_mean"),
        ("key-mean", "is no name for a method", "key_mean"),
        ("2bit", "is no name for a method", "my_2bit"),
        ("key__mean_", "is no name for a method", "key_mean"),
        ("../key", "is no name for a method", "key"),
        ("class", "is no name for a method", "my_class"),
        ("ключ", "is no name for a method", "score"),
        ("", "is no name for a method", "score"),
        ("all", "stands for every method", "my_score"),
        ("knorm", "is there already", "my_knorm"),
        ("KNorm", "is no name for a method", "my_knorm"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_one_that_can(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, says: str, hint: str
) -> None:
    assert main(["new-method", name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err.splitlines()[0]
    command = err.splitlines()[1].partition("#")[0].split()
    assert command == ["try:", "kvbench", "new-method", hint]
    assert os.listdir(here) == []
    authoring.check_name(hint)


@pytest.mark.fast
@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")], ids=["folder", "file", "broken link"])
def test_what_is_there_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None]) -> None:
    make(here / "mine")
    before = everything(here)
    assert main(["new-method", "key_mean", "--folder", "mine"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error: mine is there already; nothing was written",
        "try: kvbench new-method key_mean --folder mine-2",
    ]
    assert everything(here) == before


@pytest.mark.fast
def test_a_second_time_changes_nothing(here: Path) -> None:
    write_package("key_mean")
    before = everything(here)
    with pytest.raises(UsageError, match="kvbench-key-mean is there already"):
        write_package("key_mean")
    assert everything(here) == before


@pytest.mark.fast
def test_no_folder_to_write_in(here: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder no/such") as caught:
        write_package("key_mean", Path("no/such/mine"))
    assert caught.value.hint == "mkdir -p no/such"
    assert os.listdir(here) == []


@pytest.mark.fast
def test_all_or_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the third file."""
    wrote, real = [], Path.write_text

    def write(path: Path, text: str, **options: str) -> int:
        wrote.append(path)
        if len(wrote) == 3:
            raise OSError(28, "No space left on device")
        return real(path, text, **options)

    monkeypatch.setattr(Path, "write_text", write)
    with pytest.raises(UsageError, match="kvbench-key-mean cannot be written: No space left on device"):
        write_package("key_mean")
    assert len(wrote) == 3
    assert os.listdir(here) == []


@pytest.mark.fast
@pytest.mark.parametrize("name", ["eviction", "tensor", "none", "value_error", "token_view", "sizes", "l2_norm"])
def test_no_name_breaks_the_template(here: Path, name: str) -> None:
    paths = write_package(name, here / "mine")
    for path in paths:
        assert "$" not in path.read_text()
        if path.suffix == ".py":
            compile(path.read_text(), path, "exec")
    value = tomllib.loads(paths[0].read_text())["project"]["entry-points"]["kvbench.methods"][name]
    module, _, cls = value.partition(":")
    source = (here / "mine" / module.replace(".", "/")).with_suffix(".py").read_text()
    assert source.count(f"class {cls}(Eviction):") == 1
    assert name not in METHODS.names()
