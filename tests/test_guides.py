"""The pages on evaluators and on model families: every block is run, as ``test_docs.py`` runs the page on methods."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from at_hand import stand_in
from stub_fixtures import forget_registries
from test_docs import blocks, write_model
from test_new_method import install

from kvbench.authoring import DOCS, EVALUATOR, write_package
from kvbench.cli import main
from kvbench.record import results

PACKAGE, MODULE = "kvbench-next-words", "kvbench_next_words"
SMALL = shlex.split("--corpus text.txt --model tiny --samples 2 --context 160 --continuation 12 --display none")
FAMILIES = DOCS / "adding_a_model_family.md"


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith(MODULE)]:
        del sys.modules[name]
    importlib.invalidate_caches()
    forget_registries()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a reader of the page on evaluators works: a tiny model and a text, and what is installed there is found."""
    stand_in(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "text.txt").write_text("".join(f"Sentence {i} of {i * i % 97} says less than {i % 13} others.\n" for i in range(200)))
    write_model(tmp_path / "tiny")
    for folder in ("site", PACKAGE):
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    monkeypatch.setitem(sys.modules, "page", ModuleType("page"))
    yield tmp_path
    monkeypatch.undo()
    forget()


def command(line: str, captured: pytest.CaptureFixture[str]) -> str:
    words = shlex.split(line, comments=True)
    if words[:4] == ["python", "-m", "pip", "install"]:
        install(Path(words[-1]), Path("site"))
        return ""
    forget()
    captured.readouterr()
    code = main(words[1:] + (SMALL if words[1] == "run" else []))
    out, err = captured.readouterr()
    assert code == 0, err
    return out


def write(file: str, text: str) -> None:
    place = Path(PACKAGE) / file
    if file == "pyproject.toml":  # the page shows one table of it
        table = text.splitlines()[1]
        before, _, after = place.read_text().partition(table)
        text = before + text.partition("\n")[2] + after[after.index("\n[") :]
    place.write_text(text)


def test_every_block_of_the_page_on_evaluators_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: dict[str, str] = {}
    space: dict[str, Any] = {"__name__": "page"}
    listing, *rest = [block for block in blocks(EVALUATOR.guide) if block.text.startswith("@dataclass")]
    assert not rest
    for block in blocks(EVALUATOR.guide):
        if block.file is not None:
            write(block.file, block.text)
        elif block.language == "sh":
            said |= {line: command(line, capsys) for line in block.text.splitlines()}
        elif block != listing:
            forget()
            exec(compile(block.text, EVALUATOR.guide.name, "exec", dont_inherit=True), space)
    assert "layer_bytes" in said["kvbench compare words layers"] + said["kvbench report layers"]
    assert "Stored MiB by layer" in said["kvbench report layers"]
    result = results.load(home / "bench_results" / "layers")
    rows = {row["method"]: row for row in result["results"]}
    assert {row["status"] for row in rows.values()} == {"done"}
    assert rows["baseline"]["next_words_shared"] == rows["baseline"]["layer_bytes_spread"] == 1
    assert rows["pyramidkv"]["layer_bytes_spread"] > 1
    assert space["found"].summaries["int8"].fields["next_words_shared"] < 1


@pytest.mark.fast
def test_the_page_on_evaluators_shows_the_template_itself(tmp_path: Path) -> None:
    """Its listing is what ``new-evaluator`` writes, less imports, comments, docstrings and annotations."""
    write_package("next_words", tmp_path / "mine", EVALUATOR)
    template = (tmp_path / "mine" / MODULE / "next_words.py").read_text()
    listing = next(block for block in blocks(EVALUATOR.guide) if block.text.startswith("@dataclass"))
    assert len(stripped(listing.text)) > 30
    assert not [line for line in stripped(listing.text) if line not in stripped(template)]


def stripped(text: str) -> list[str]:
    """Lines without comments and docstrings; of a function's head its name alone."""
    lines = [line.partition("  #")[0].strip() for line in text.splitlines() if not line.strip().startswith('"""')]
    return [line.partition("(")[0] if line.startswith("def ") else line for line in filter(None, lines)]


def test_every_block_of_the_page_on_families_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """A family that is none of those which methods are tried on: the model's own logits, and every path through a cache."""
    (block,) = [block for block in blocks(FAMILIES) if block.language == "python"]
    exec(compile(block.text, FAMILIES.name, "exec", dont_inherit=True), {"__name__": "page"})
    out = capsys.readouterr().out.splitlines()
    name, figure = out[0].split()
    assert name == "identity"
    assert float(figure) < 1e-10
    assert len(out) > 8
    assert all(line.startswith("ok") for line in out[1:])


def test_the_page_on_families_names_every_rule() -> None:
    from kvbench.models import shape

    explained = FAMILIES.read_text(encoding="utf-8")
    rules = [rule.__name__ for rule in shape._RULES] + ["_short_window", "_changing_rope"]
    assert [rule for rule in rules if f"`{rule}`" not in explained] == []
