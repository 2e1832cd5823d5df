"""The pages for authors: every block is run, in the order in which a reader would.

A Python or TOML block whose first line is a path is that file of the package that the page writes; other Python
blocks share one namespace; shell blocks are commands. ``kvbench run`` is given a tiny model and text, being too slow
with the model that it takes on its own, and ``kvbench verify`` shorter prompts of one family; the lines are otherwise
run as they stand. A command runs within this process, which forgets the package before it as a new one would: what
starting processes costs was most of what the page cost.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from at_hand import at_hand  # noqa: F401
from stub_fixtures import forget_registries
from test_new_method import install

from kvbench.authoring import GUIDE, write_package
from kvbench.caches.cache import CacheOptions, Geometry, use_kvbench_attention
from kvbench.caches.needs import Needs
from kvbench.cli import main
from kvbench.instruments import audit, verify
from kvbench.instruments.audit import Label
from kvbench.instruments.protocol import Runner
from kvbench.instruments.tiny import make_tiny_config, make_tiny_model
from kvbench.instruments.verify import Sizes, conformance
from kvbench.methods.base import Eviction, Method
from kvbench.methods.baseline import Baseline
from kvbench.record import results

PACKAGE = "kvbench-token-worth"
PIP = "python -m pip install -e "
SMALL = shlex.split("--corpus text.txt --model tiny --evals perplexity --samples 2 --context 192 --continuation 16 --display none")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that its first line names, and its text."""

    language: str
    file: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    named = [(language, re.match(r"# (\S+\.(?:py|toml))\n", text), text) for language, text in found]
    return [Block(language, first and first[1], text) for language, first, text in named]


@dataclass
class Reader:
    """Follows the page in a folder.

    Attributes:
        space: What the page's Python has defined. output: Of each ``kvbench`` command, stdout.
    """

    home: Path
    space: dict[str, Any]
    captured: pytest.CaptureFixture[str]
    output: dict[str, str] = field(default_factory=dict)

    @property
    def package(self) -> Path:
        return self.home / PACKAGE

    def follow(self, block: Block) -> None:
        if block.file is not None:
            self.write(block.file, block.text)
        elif block.language == "python":
            exec(compile(block.text, GUIDE.name, "exec", dont_inherit=True), self.space)
        elif block.language == "sh":
            for line in block.text.splitlines():
                self.command(line)
        else:
            raise ValueError(f"nothing runs a block of '{block.language}'")

    def write(self, file: str, text: str) -> None:
        if file == "pyproject.toml":  # the page shows one table of it
            (table,) = re.findall(r"^\[.*\]$", text, re.MULTILINE)
            before, _, after = (self.package / file).read_text().partition(table)
            text = before + text.partition("\n")[2] + "\n" + after[after.index("\n[") :]
        (self.package / file).write_text(text)

    def command(self, line: str) -> None:
        words = shlex.split(line, comments=True)
        if line.startswith(PIP):
            install(self.home / words[-1], self.home / "site")
            return
        assert words[0] == "kvbench", line
        forget()
        self.captured.readouterr()
        code = main(words[1:] + (SMALL if words[1] == "run" else []))
        out, err = self.captured.readouterr()
        assert code == 0, err
        self.output[shlex.join(words)] = out


def forget() -> None:
    """The package, its metadata and its files are read anew when they are next asked for."""
    for name in [name for name in sys.modules if name.startswith("kvbench_token_worth")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    forget_registries()


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file that is written twice in a second would be read from the first
    monkeypatch.setattr(verify, "Sizes", partial(Sizes, context=45, continuation=15, layers=2))
    monkeypatch.setattr(verify, "FAMILIES", ["qwen2"])
    (tmp_path / "text.txt").write_text("".join(f"Sentence {i} of {i * i % 97} says less than {i % 13} others.\n" for i in range(400)))
    write_model(tmp_path / "tiny")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(tmp_path / PACKAGE))
    page = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)  # dataclasses look their module up
    yield Reader(tmp_path, vars(page), capsys)
    monkeypatch.undo()
    forget()


def write_model(folder: Path) -> None:
    """A tiny random model with heads of 64, and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:128]
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = AutoConfig.for_model(**make_tiny_config("llama") | {"head_dim": 64, "num_hidden_layers": 2})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.mark.usefixtures("at_hand")
def test_every_block_of_the_page_runs(reader: Reader) -> None:
    for block in blocks(GUIDE):
        reader.follow(block)
    verdicts = [text for command, text in reader.output.items() if command.startswith("kvbench verify ")]
    assert len(verdicts) == 2
    assert all(verdict.splitlines()[-1].split()[:4] == ["ok", "audit", "label", "real"] for verdict in verdicts)
    assert "token_worth" in reader.output["kvbench compare before after"]
    runs = [results.load(reader.home / "bench_results" / name) for name in ("before", "after", "sparse")]
    rows = [row for result in runs for row in result["results"] if row["method"] != "baseline"]
    assert len(rows) == 8 + 8 + 4
    assert {(row["status"], row["audit"]) for row in rows} == {("done", "real")}
    for method in methods_of(reader.space):
        failed = [check for check in conformance(method, "qwen2", Sizes(context=30, continuation=15, layers=2)) if not check.passed]
        assert not failed


def methods_of(space: dict[str, Any]) -> list[Method]:
    """Those that the page's own Python defines, not what it imports."""
    found = [v() for v in space.values() if isinstance(v, type) and issubclass(v, Method) and v.__module__ == "page"]
    assert [method.name for method in found] == ["curious", "value_basis"]
    return found


@pytest.mark.fast
def test_a_score_is_shorter_than_it_says() -> None:
    first = next(block for block in blocks(GUIDE) if block.file == "kvbench_token_worth/token_worth.py")
    assert len([line for line in first.text.splitlines()[1:] if line.strip()]) < 20


@pytest.mark.fast
def test_the_page_shows_the_template_itself(tmp_path: Path) -> None:
    """Its first listing is what ``new-method`` writes, less comments, annotations and the check of ``n_sink``."""
    write_package("token_worth", tmp_path / "mine")
    template = (tmp_path / "mine/kvbench_token_worth/token_worth.py").read_text()
    first = next(block for block in blocks(GUIDE) if block.file == "kvbench_token_worth/token_worth.py")
    body = [line.partition("  #")[0].strip() for line in first.text.partition("class TokenWorth")[2].splitlines()[2:]]
    for line in filter(None, body):
        bare = line.replace("(self, tokens)", "(self, tokens: TokenView) -> Tensor").replace("worth = ", "worth: Tensor = ")
        assert bare in template


@pytest.mark.fast
def test_every_check_and_label_is_explained() -> None:
    explained = {cells[1].strip() for line in GUIDE.read_text(encoding="utf-8").splitlines() if len(cells := line.split("|")) > 2}
    checks = {check.name.partition(" (")[0] for check in conformance(Baseline(), "qwen2", Sizes(context=20, continuation=20))}
    streaming = {name for name in checks if " chunk " in name}
    assert len(streaming) == 2
    assert {name.partition(" chunk ")[0] for name in streaming} == {"block = token by token, streaming"}
    assert checks - streaming | {"block = token by token, streaming, chunk 1 and 7"} <= explained
    audited = set(re.findall(r'Check\(\s*"([a-z ]+)"', inspect.getsource(audit)))
    assert len(audited) == 6
    assert audited <= explained
    assert {f"`{label}`" for label in get_args(Label)} <= explained


@pytest.mark.fast
def test_needs_hand_over_what_the_page_says() -> None:
    """Shapes of the table under "What a score may read"."""
    import torch

    seen: dict[str, Any] = {}

    @dataclass(frozen=True)
    class Spy(Eviction):
        name = "spy"
        needs = Needs(window=8, attention=True, moments=(4,), hidden=True, surrogate=("surrogate:linear",))

        def score(self, tokens: Any) -> Any:
            observed = tokens.observed
            seen.update(
                votes=tokens.window_attention(8), window=observed.window, attention=observed.attention, hidden=observed.hidden,
                moments=observed.moments[0].mean_and_covariance(), budget=tokens.budget, scaling=tokens.scaling,
                surrogate=observed.surrogate("surrogate:linear"),
            )  # fmt: skip
            return tokens.keys.norm(dim=-1)

    model = make_tiny_model("llama")
    use_kvbench_attention(model)
    heads, kv_heads, dim, hidden = 6, 2, 16, 96
    linear = {"surrogate:linear/w1": [torch.ones(kv_heads, hidden)] * 4, "surrogate:linear/b1": [torch.ones(kv_heads)] * 4}
    runner = Runner(model, Geometry.of(model), linear, CacheOptions())
    runner.compress(Spy(), runner.prefill(torch.arange(3, 33)[None], Spy.needs))
    assert seen["votes"].shape == (1, heads, 8, 30)
    assert seen["window"].shape == (1, heads, 8, dim)
    assert seen["attention"].shape == (1, heads, 30)
    assert seen["hidden"].shape == (1, 30, hidden)
    assert seen["surrogate"].shape == (1, kv_heads, 30)
    assert [m.shape for m in seen["moments"]] == [(1, heads, dim), (1, heads, dim, dim)]
    assert (seen["budget"], seen["scaling"]) == (15, dim**-0.5)


@pytest.mark.fast
def test_the_readme_leads_to_the_page() -> None:
    root = Path(__file__).parents[1]
    links = re.findall(r"\]\((kvbench/docs/[^)]+)\)", (root / "README.md").read_text(encoding="utf-8"))
    assert links
    assert all((root / link).is_file() for link in links)
    assert any(os.path.samefile(root / link, GUIDE) for link in links)
