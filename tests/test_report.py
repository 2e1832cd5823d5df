"""Reports: every figure in every format, all text escaped, nothing fetched, and the result file alone is read."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
import pytest
from test_evaluators import made_up

from kvbench.cli import main
from kvbench.cli.question import spec_of, sweep_of
from kvbench.cli.run import run
from kvbench.figures import Grid, Table
from kvbench.figures.colours import RAMP, fill, ink
from kvbench.figures.terminal import draw_grids, draw_table, shade
from kvbench.metrics.front import Point
from kvbench.record import results
from kvbench.record.state import MethodState, RunState
from kvbench.report import FORMATS, build, write
from kvbench.report.command import command_of
from kvbench.report.scatter import scatter
from kvbench.spec import MethodSpec, RunSpec

EVIL = "<script>alert('x')</script> & \"q\" | `c` *b*"
AUDIT = {
    "canary": {"passed": True, "figure": 1.0, "detail": "largest change"},
    "fewer bytes": {"passed": False, "figure": 1.0, "detail": "stores 100.0% of the baseline's bytes"},
}
GRIDS = [
    Grid("depths", f"Found {EVIL}", m, ["0.00", "1.00"], ["512", "1024"], [[0.125, None], [1.0, 0.5]], "depth", "tokens", notes=[EVIL])
    for m in ("knorm", "baseline")
]
TABLE = Table("words", f"Texts {EVIL}", ["method", "text", "score"], [["knorm", f"{EVIL}\nsecond line {'long ' * 30}", "41.5"]], 2, [EVIL])


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run with two methods that were scored, one that failed, a unit that was lost, and hostile text wherever text can stand."""
    monkeypatch.setattr("kvbench.report.content.figures", lambda state: {"perplexity": [TABLE, *GRIDS]})
    spec = spec_of({"methods": "knorm,int4,snapkv", "evals": "perplexity"}).with_changes(sweep=None)
    audited = {"baseline": "reference", "knorm": "real", "int4": "real"}
    rows = {m: MethodState(m, "done", units_done=1, units_planned=1, audit_label=audit, audit=AUDIT) for m, audit in audited.items()} | {
        "snapkv": MethodState("snapkv", "failed", error=f"it broke: {EVIL}", error_kind="ValueError")
    }
    state = RunState(
        status="interrupted", spec=spec, methods=MappingProxyType(rows),
        records={"perplexity": {"baseline": made_up(1, 0.0), "knorm": made_up(2, 0.08), "int4": made_up(3, 0.03)}},
        environment={"python": "3.11", "torch": "2.13", "git": {"commit": "c0ffee", "dirty": True}},
        model={"id": EVIL, "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64, "weights_hash": "beef" * 16},
        corpus={"name": EVIL}, prepared={"tasks": {"skipped": ["mmlu"], "source": EVIL, "left_out": {"piqa": "no file"}}},
        lost={"speed/3": EVIL}, kvbench_version="0.9",
    )  # fmt: skip
    return results.build(state, f"run {EVIL}")


class Reader(HTMLParser):
    """Checks that tags close in order, and keeps text, tags and attributes."""

    VOID = frozenset({"meta", "br", "line", "polyline"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_whole_escaped_and_fetches_nothing(result: dict[str, Any]) -> None:
    text = write(result, "html")
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    tags = {tag for tag, _ in reader.seen}
    assert not tags & {"script", "link", "img", "iframe", "object", "base", "form"}
    names = {name for _, attributes in reader.seen for name in attributes}
    assert not {name for name in names if name in ("src", "srcset", "action") or name.startswith("on")}
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in reader.seen)
    assert not re.search(r"url\(|@import", text)
    assert reader.text.count(EVIL) >= 8
    assert "prefers-color-scheme: dark" in text
    headings = [attributes.get("scope") for tag, attributes in reader.seen if tag == "th"]
    assert headings.count("row") > 4
    assert headings.count("col") > 10


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_says_everything(result: dict[str, Any], form: str) -> None:
    text = unescape(write(result, form))
    if form == "latex":
        text = text.replace(r"\%", "%").replace("$-$", "-").replace("-{}-", "--").replace(r"\_", "_").replace(r"\textquotesingle{}", "'")
    row = next(r for r in result["results"] if r["method"] == "knorm")
    for key, form_of in {"perplexity": ".2f", "ppl_delta_pct": "+.2f", "delta_low": "+.2f", "kl": ".4f", "kl_p99": ".4f"}.items():
        assert format(row[key], form_of) in text, key
    for words in (
        "not complete",
        "it broke",
        "speed/3 is missing",
        "tasks.skipped: mmlu",
        "tasks, piqa: no file",
        "100",
        "41.5",
        "sha256 beefbeefbeef",
    ):
        assert words in text, words
    for title in ("Methods", "Audit", "Failures", "Left out", "Data", "Published figures", "command"):
        assert title in text, title
    assert "knorm, fewer bytes: stores 100.0% of the baseline" in text
    assert "baseline, fewer bytes" not in text
    assert "kvbench run --preset smollm2" in text
    assert "0.9 · commit c0ffee with changes" in text


def test_markdown_tables_keep_their_columns_and_text_its_width(result: dict[str, Any]) -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", write(result, "markdown"), re.MULTILINE)
    assert len(blocks) >= 6
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block
    assert "<script" not in write(result, "markdown")
    assert max(map(len, write(result, "text").partition("The run's command")[0].splitlines())) <= 140


def test_shades_and_colours_go_from_worse_to_better() -> None:
    high, low = GRIDS[0], Grid("kl", "KL", "knorm", ["a"], ["b", "c"], [[0.0042, 1541.0]], low=0.0042, high=1541.0, good="low")
    assert [high.goodness(v) for v in (0.0, 0.25, 1.0, 7.0, None)] == [0.0, 0.25, 1.0, 1.0, None]
    assert [low.goodness(v) for v in (0.0042, 1541.0)] == [1.0, 0.0]
    assert [shade(high, v) for v in (0.0, 0.3, 0.5, 0.7, 1.0, None)] == [" ", "░", "▒", "▓", "█", " "]
    assert [high.written(v) for v in (0.125, 1.0, None)] == ["12", "100", "–"]
    assert [low.written(v) for v in (0.0042, 2.864, 41.26, 1541.2)] == ["0.0042", "2.86", "41.3", "1541"]
    assert [fill(i / 8) for i in range(9)] == list(RAMP)
    level = Grid("x", "x", "m", ["a"], ["b"], [[2.0]], low=2.0, high=2.0)
    assert level.goodness(2.0) == 1.0


def contrast(one: str, other: str) -> float:
    """WCAG 2.1, relative luminance."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_text_on_every_colour_can_be_read() -> None:
    assert min(contrast(fill(i / 100), ink(i / 100)) for i in range(101)) >= 4.5


def test_wide_tables_go_on_below_with_the_first_column_again() -> None:
    headings = ["method", *(f"column {i:02d}" for i in range(30))]
    text = draw_table(Table("t", "t", headings, [["knorm", *map(str, range(30))], ["int4", *map(str, range(30))]]))
    assert max(map(len, text.splitlines())) <= 140
    blocks = text.split("\n\n")
    assert len(blocks) == 3
    assert all(block.startswith("method") and "\nknorm" in block for block in blocks)
    assert re.findall(r"column \d\d", text) == headings[1:]


def test_heat_maps_stand_side_by_side_within_the_width() -> None:
    lines = draw_grids([GRIDS[0]] * 9, 100).splitlines()
    assert max(map(len, lines[1:])) <= 100
    assert sum(line.count("knorm") for line in lines) == 9
    assert len([line for line in lines if "knorm" in line]) == 3
    assert "12░" not in "".join(lines)
    assert any("100█" in line and "50▒" in line for line in lines)


def test_the_line_joins_what_nothing_beats() -> None:
    points = [Point("a", 2.0, 0.1), Point("b", 4.0, 0.3), Point("c", 3.0, 0.5), Point("d", 2.0, 0.2), Point("<e>", 8.0, 1.0)]
    svg = scatter(points)
    assert re.findall(r'class="best".*?<title>(.*?):', svg, re.DOTALL) == ["a", "b", "&lt;e&gt;"]
    assert svg.count("<circle") == 5
    assert "&lt;e&gt;: 8.00" in svg
    assert all(math.isfinite(float(v)) for v in re.findall(r'c[xy]="([^"]+)"', svg))


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"methods": "snapkv:window=16,kernel=3+int4,kivi:bits=2", "evals": "perplexity,speed:batch=1+8,steps=4", "batch_size": 2},
        {"model": "Org/Name", "methods": "knorm", "dtype": "bfloat16", "stride": 7, "compression_ratio": 0.75, "revision": "main"},
        {"preset": "qwen7b", "random_weights": True, "evals": "speed", "methods": "int4", "device": "cuda:1", "seed": 3},
        {"methods": "knorm,snapkv", "budget": "2x,4x", "context": 256},
        {"methods": "streaming_llm", "evals": "perplexity", "protocol": "streaming", "chunk_size": 8},
    ],
)
def test_the_command_asks_the_same_question(flags: dict[str, Any]) -> None:
    spec = spec_of(flags)
    assert asked_by(command_of(spec)) == spec


def test_the_command_of_a_sweep_has_its_rows() -> None:
    spec = sweep_of({"method": ("kivi",), "over": ("bits=2,4", "context=128,256"), "ablation": None, "methods": "snapkv"})
    assert asked_by(command_of(spec)) == spec.with_changes(sweep=None)


def asked_by(command: str) -> RunSpec:
    import shlex

    words = shlex.split(command)
    assert words[:2] == ["kvbench", "run"]
    flags = click.Context(run).command.make_context("run", words[2:]).params
    return spec_of({k: v for k, v in flags.items() if k not in ("name", "output", "output_dir", "display", "resume", "dry_run")})


def written_to(folder: Path) -> Path:
    """A result file by itself."""
    spec = spec_of({"methods": "knorm", "evals": "perplexity"})
    row = {"method": "knorm", "method_name": "Knorm", "status": "done", "error": None, "audit": None, "measured": []}
    document = {
        "schema": results.SCHEMA, "run": "r", "complete": True, "kvbench_version": "0", "protocol": "prefill", "spec": spec.to_plain(),
        "environment": {}, "model": {}, "corpus": {}, "baseline_perplexity": None, "results": [row], "records": {}, "lost": {},
        "seconds": 0.0,
    }  # fmt: skip
    path = folder / "result.json"
    path.write_text(json.dumps(document))
    return path


def test_the_command_reads_the_result_alone_and_loads_no_model_library(tmp_path: Path) -> None:
    code = (
        "import sys; from kvbench.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(code or 3 * bool({'torch', 'transformers', 'textual', 'rich'} & set(sys.modules)))"
    )
    args = ["report", str(written_to(tmp_path)), "-o", str(tmp_path / "page.html")]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


def test_the_format_follows_the_name_and_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(written_to(tmp_path))
    assert main(["report", file]) == 0
    assert capsys.readouterr().out.startswith("r\n=\n")
    assert main(["report", file, "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("# r\n")
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "a.md"), "--format", "html"]) == 0
    assert (tmp_path / "a.md").read_text().startswith("<!DOCTYPE")
    assert main(["report", file, "-o", str(tmp_path / "no" / "a.md")]) == 5
    assert main(["report", "nothing"]) == 2
    (tmp_path / "began").mkdir()
    (tmp_path / "began" / "spec.json").write_text("{}")
    assert main(["report", str(tmp_path / "began")]) == 6
    assert "kvbench run --resume" in capsys.readouterr().err


def test_a_run_of_nothing_but_its_audit_still_has_a_report(tmp_path: Path) -> None:
    found = build(results.load(written_to(tmp_path)))
    assert found.sections[0].title == "Methods"
    assert MethodSpec.parse("knorm").label in write(results.load(written_to(tmp_path)), "text")


@pytest.mark.parametrize("name", ["x.pdf", "x.svg", "x.json", "x.html.gz"])
def test_a_suffix_that_cannot_be_written_is_refused_before_anything_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = str(written_to(tmp_path))
    before = sorted(tmp_path.iterdir())
    for extra in ([], ["--format", "text"]):
        assert main(["report", file, "-o", str(tmp_path / name), *extra]) == 2
        assert "cannot be written as" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_report_that_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    file = str(written_to(tmp_path))
    (tmp_path / "x.md").write_text("before")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("kvbench.files.os.fsync", full)
    assert main(["report", file, "-o", str(tmp_path / "x.md")]) == 5
    assert (tmp_path / "x.md").read_text() == "before"
    assert sorted(tmp_path.iterdir()) == before
