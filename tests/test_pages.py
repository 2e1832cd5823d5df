"""CONTRIBUTING and ARCHITECTURE are held to the code: what they name exists."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvbench.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = ["CONTRIBUTING.md", "ARCHITECTURE.md", "kvbench/docs/adding_an_evaluator.md", "kvbench/docs/adding_a_model_family.md"]
MADE = {"spec.json", "result.json", "events.jsonl", "run.log", "config.json", "my-model", ".venv", ".venv-oldest", ".venv-newest"}
"""What a run, a checkpoint or an environment has, and the repository has not."""
_PATH = re.compile(r"\.?[\w-]+(?:/[\w.*-]+)+/?|[\w-]+\.(?:py|md|toml|txt|jsonl?)|\.importlinter")

pytestmark = pytest.mark.fast


def quoted(page: str) -> Iterator[str]:
    """Whatever stands as code: in the line, and each line of a shell block."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def paths(page: str) -> set[str]:
    """Files and folders that are named, with ``::`` and a test behind those that name one."""
    found = set()
    for code in quoted(page):
        for word in code.split():
            path, _, test = word.strip("(),;:").partition("::")
            if _PATH.fullmatch(path) and not MADE & set(Path(path).parts):
                found.add(f"{path}::{test}" if test else path)
    return found


def places(path: str) -> list[Path]:
    """Where it is: from the root, or from the package, as ARCHITECTURE's tables have it; a bare name is that of some module."""
    bare = [*(ROOT / "kvbench").rglob(path)] if "/" not in path else []
    return [place for home in (ROOT, ROOT / "kvbench") for place in home.glob(path.rstrip("/"))] + bare


@pytest.mark.parametrize("page", PAGES)
def test_every_path_and_test_exists(page: str) -> None:
    named = paths(page)
    assert len(named) > 5
    missing = []
    for name in sorted(named):
        path, _, test = name.partition("::")
        found = places(path)
        if not found or (test and test not in functions(found[0])):
            missing.append(name)
    assert missing == []


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")):
        assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_every_command_and_flag_exists(page: str) -> None:
    from click import Context

    from kvbench.cli import cli

    for code in quoted(page):
        words = shlex.split(code.partition("#")[0].replace(".venv/bin/", ""), posix=True) if code.count("'") % 2 == 0 else []
        if len(words) < 2 or words[0] != "kvbench" or not re.fullmatch(r"[a-z-]+", words[1]):
            continue
        assert words[1] in COMMANDS, code
        command = cli.get_command(Context(cli), words[1])
        assert command is not None
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, code


def test_ci_knows_the_flags_that_contributing_names() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    flags = {word for code in quoted("CONTRIBUTING.md") if ".ci/run" in code for word in code.split() if word.startswith("--")}
    assert flags == {"--short", "--oldest", "--newest"}
    assert all(f"{flag})" in script for flag in flags)


NOT_TO_BE_HAD = {"torch"}
"""No build of its lowest version without CUDA is on PyPI."""


def test_oldest_is_the_lowest_of_every_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["longbench"], *project["optional-dependencies"]["dev"]]
    lines = (ROOT / ".ci" / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    held = {_plain(name): version for name, _, version in (line.partition("==") for line in lines if not line.startswith("#"))}
    lowest = {_plain(found[1]): found[2] for each in asked if (found := re.match(r"([\w.-]+)>=([\d.]+)", each))}
    assert len(lowest) > 30
    other = {name: held.get(name) for name, low in lowest.items() if not f"{held.get(name)}.".startswith(f"{low}.")}
    assert set(other) == NOT_TO_BE_HAD, other


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
