"""``kvbench compare``: what is shown to differ, what is not, and what may not be compared."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from kvbench.cli.compare import compare as command
from kvbench.compare import Comparison, Finding, Threshold, check, compare, render, side_of
from kvbench.errors import ExitCode, ResultError, UnknownName, UsageError

NLL = [2.9, 3.1, 3.0, 2.8, 3.2, 3.05]
TIMES = [0.0100, 0.0101, 0.0102, 0.0103, 0.0104]
SHAPE = {"layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "hidden_size": 32}
Doc = dict[str, Any]


def figure(metric: str, value: float, evidence: str, **given: Any) -> Doc:
    samples = {str(i): v for i, v in enumerate(given.pop("samples", ()))}
    return {
        "unit": "1",
        "better": "lower",
        "point": "",
        "scale": "linear",
        "metric": metric,
        "value": value,
        "evidence": evidence,
        **given,
        "samples": samples,
    }


def perplexity(samples: list[float]) -> Doc:
    return figure("perplexity", math.exp(min(700.0, sum(samples) / len(samples))), "paired", samples=samples, scale="log")


def row(method: str, nll: list[float] = NLL, times: list[float] = TIMES, stored: int = 1000, **given: Any) -> Doc:
    measured = [
        perplexity(nll),
        figure("stored_bytes", stored, "exact", unit="bytes"),
        figure(
            "tokens_per_s",
            1 / sorted(times)[len(times) // 2],
            "noisy",
            better="higher",
            samples=[1 / t for t in times],
            point="batch=1,context=8",
        ),
    ]
    return {"method": method, "status": "done", "audit": "real", "measured": measured, **given}


def result(*rows: Doc, name: str = "run") -> Doc:
    return {
        "schema": 1, "run": name, "complete": True, "kvbench_version": "0.1.0", "protocol": "prefill", "baseline_perplexity": 20.0,
        "spec": {"context": 8, "continuation": 4, "chunk_size": 1, "compression_ratio": 0.5, "seed": 0, "samples": 6, "batch_size": 1},
        "environment": {"torch": "2.13.0", "threads": 2, "git": {"commit": "1"}},
        "model": SHAPE | {"weights_hash": "w", "tokenizer_hash": "v", "dtype": "float32", "cache_dtype": "bfloat16"},
        "corpus": {"name": "text", "tokens_hash": "t", "content_hash": "c", "join": "\n", "bos": False, "window": 12, "stride": 12},
        "records": {}, "lost": {}, "seconds": 1.0, "results": list(rows),
    }  # fmt: skip


def against(a: Doc, b: Doc) -> Comparison:
    return compare(side_of(a), side_of(b))


def changed(document: Doc, part: str, **values: Any) -> Doc:
    other = copy.deepcopy(document)
    if isinstance(other[part], dict):
        other[part].update(values)
    else:
        other[part] = values["to"]
    return other


def find(found: Comparison, metric: str, method: str = "knorm") -> Finding:
    return next(f for f in found.findings if (f.metric, f.method) == (metric, method))


def shifted(values: list[float], by: Callable[[int], float]) -> list[float]:
    return [v + by(i) for i, v in enumerate(values)]


def test_the_same_result_differs_in_nothing() -> None:
    found = against(result(row("knorm")), result(row("knorm")))
    assert {f.verdict for f in found.findings} == {"~"}
    assert (found.tests, found.warnings) == (0, [])


def test_paired_perplexity_is_judged_by_ratio_on_shared_samples() -> None:
    worse = shifted(NLL, lambda i: 0.02 + 0.001 * (i % 2))
    found = find(against(result(row("knorm")), result(row("knorm", worse))), "perplexity")
    assert found.verdict == "-"
    assert found.change.percent == pytest.approx(100 * math.expm1(0.0205))
    assert found.p is not None
    assert found.p < 0.001
    assert (found.change.percent_low or 0) < (found.change.percent or 0) < (found.change.percent_high or 0)
    assert found.change.absolute == pytest.approx((found.b or 0) - (found.a or 0))


def test_a_difference_that_chance_could_make_is_not_shown() -> None:
    noisy = shifted(NLL, lambda i: 0.02 * (-1) ** i + 0.001)
    found = find(against(result(row("knorm")), result(row("knorm", noisy))), "perplexity")
    assert found.verdict == "~"
    assert (found.change.percent_low or 0) < 0 < (found.change.percent_high or 0)


def test_other_sample_counts_compare_what_is_shared() -> None:
    more = shifted([*NLL, 9.0], lambda i: 0.01 + 0.0001 * i)
    found = find(against(result(row("knorm")), result(row("knorm", more))), "perplexity")
    assert (found.n_a, found.verdict) == (6, "-")
    assert "6 shared samples" in found.note
    assert found.b == pytest.approx(math.exp(sum(more[:6]) / 6)), "the seventh sample must not enter B's figure"


def test_more_samples_of_the_same_text_share_windows() -> None:
    more = changed(changed(A, "corpus", tokens_hash="u"), "spec", samples=9)
    assert find(against(A, more), "perplexity").verdict == "~"
    assert find(against(A, changed(more, "corpus", content_hash="d")), "perplexity").verdict == "x"
    assert find(against(A, changed(more, "model", tokenizer_hash="d")), "perplexity").verdict == "x"


def test_a_pooled_figure_is_compared_by_the_means_of_its_samples() -> None:
    a, b = (
        result(row("knorm") | {"measured": [figure("ece", v, "paired", samples=[0.1 + d, 0.2 + d])]}) for v, d in ((0.05, 0), (0.06, 0.01))
    )
    found = find(against(a, b), "ece")
    assert (found.a, found.b) == (pytest.approx(0.15), pytest.approx(0.16))
    assert "not pooled" in found.note


def test_a_broken_method_has_a_finite_perplexity() -> None:
    found = find(against(A, result(row("knorm", [2000.0 + i for i in range(6)]))), "perplexity")
    assert found.verdict == "-"
    assert math.isfinite(found.b or math.inf)


def test_one_sample_is_told_and_not_judged() -> None:
    found = find(against(result(row("knorm", [3.0])), result(row("knorm", [4.0]))), "perplexity")
    assert (found.verdict, found.p) == ("~", None)
    assert "not tested" in found.note


def test_exact_figures_go_by_value() -> None:
    found = find(against(result(row("knorm")), result(row("knorm", stored=999))), "stored_bytes")
    assert (found.verdict, found.p, found.change.absolute) == ("+", None, -1.0)


def test_noisy_figures_go_by_rank_and_better_direction() -> None:
    slower = [t * 1.2 for t in TIMES]
    found = find(against(result(row("knorm")), result(row("knorm", times=slower))), "tokens_per_s")
    assert (found.verdict, found.p) == ("-", pytest.approx(2 / math.comb(10, 5)))
    assert found.change.percent == pytest.approx(-100 / 6)
    assert (found.change.percent_low or 0) <= (found.change.percent or 0) <= (found.change.percent_high or 0) < 0
    crossing = [0.01005, 0.0099, 0.01025, 0.01035, 0.0105]
    assert find(against(result(row("knorm")), result(row("knorm", times=crossing))), "tokens_per_s").verdict == "~"


def test_three_repeats_say_that_they_cannot_show_anything() -> None:
    found = find(against(result(row("knorm", times=TIMES[:3])), result(row("knorm", times=[1.0, 2.0, 3.0]))), "tokens_per_s")
    assert found.verdict == "~"
    assert "cannot show" in found.note


def test_neither_direction_is_better() -> None:
    a, b = result(row("knorm")), result(row("knorm", stored=5))
    for document in (a, b):
        document["results"][0]["measured"][1]["better"] = "neither"
    assert find(against(a, b), "stored_bytes").verdict == "!"


A = result(row("knorm"))
REFUSED = [
    ("corpus", {"tokens_hash": "u"}, {"perplexity"}, "other text"),
    ("corpus", {"tokens_hash": None}, {"perplexity"}, "not recorded in B"),
    ("corpus", {"stride": 6}, {"perplexity"}, "other windows"),
    ("model", {"weights_hash": "v"}, {"perplexity"}, "other weights"),
    ("protocol", {"to": "streaming"}, {"perplexity", "stored_bytes", "tokens_per_s"}, "other protocol"),
    ("spec", {"continuation": 9}, {"perplexity", "stored_bytes"}, "other continuation"),
    ("spec", {"context": 9}, {"perplexity", "stored_bytes"}, "other context"),
    ("model", {"cache_dtype": "float16"}, {"stored_bytes"}, "other cache dtype"),
    ("model", {"kv_heads": 4}, {"stored_bytes", "tokens_per_s"}, "other shape"),
    ("spec", {"chunk_size": 4}, set(), ""),
]


@pytest.mark.parametrize(("part", "values", "refused", "reason"), REFUSED)
def test_what_is_not_comparable_is_refused_with_its_reason(part: str, values: Doc, refused: set[str], reason: str) -> None:
    found = against(A, changed(A, part, **values))
    crossed = {f.metric: f.note for f in found.findings if f.verdict == "x"}
    assert crossed.keys() == refused
    assert all(reason in note for note in crossed.values())
    assert not any("\n" in note for note in crossed.values()), "a note is a cell of a table"


def test_chunk_size_matters_where_it_is_used() -> None:
    streaming = changed(A, "protocol", to="streaming")
    assert find(against(streaming, changed(streaming, "spec", chunk_size=4)), "perplexity").verdict == "x"


def test_bytes_of_another_text_are_compared_with_a_note() -> None:
    other = changed(result(row("knorm", stored=900)), "corpus", tokens_hash="u")
    found = find(against(A, other), "stored_bytes")
    assert found.verdict == "+"
    assert "other text" in found.note


def test_exact_figures_about_the_text_need_the_text() -> None:
    a, b = copy.deepcopy(A), changed(A, "corpus", tokens_hash="u")
    for document in (a, b):
        document["results"][0]["measured"].append(figure("kl_p99", 0.5, "exact", unit="nats"))
    assert find(against(a, b), "kl_p99").verdict == "x"


def test_a_no_op_is_not_ranked_and_a_mask_is_labelled() -> None:
    noop = result(row("knorm", stored=1, audit="no-op"))
    found = against(A, noop)
    assert {f.verdict for f in found.findings} == {"x"}
    assert any("audited as real in A, no-op in B" in line for line in found.warnings)
    masked = render.text(against(A, result(row("knorm", stored=1, audit="masked"))))
    assert "knorm (real → masked)" in masked


def test_failed_and_lonely_methods_are_told() -> None:
    failed = row("knorm", status="failed", error="out of memory") | {"measured": []}
    found = against(result(row("knorm"), row("tova")), result(failed, row("int4")))
    assert (found.only_a, found.only_b) == (["tova"], ["int4"])
    assert find(found, "perplexity").note == "failed in B: out of memory"
    assert "only in A: tova" in render.text(found)
    assert "knorm failed in B: out of memory" in found.warnings


def test_environment_and_settings_warn() -> None:
    other = changed(changed(A, "environment", torch="2.14.0", git={"commit": "2"}), "spec", compression_ratio=0.75, samples=4)
    warnings = "\n".join(against(A, other | {"complete": False}).warnings)
    assert "torch differs: 2.13.0 in A, 2.14.0 in B" in warnings
    assert "compression_ratio differs: 0.5 in A, 0.75 in B" in warnings
    assert "not complete" in warnings
    assert "git" not in warnings


def test_not_a_number_counts_as_not_measured() -> None:
    broken = copy.deepcopy(A)
    broken["results"][0]["measured"][0]["value"] = None
    assert find(against(A, broken), "perplexity").note == "not measured in B"
    del broken["results"][0]["measured"][0]["metric"]
    with pytest.raises(ResultError, match="row that cannot be read"):
        side_of(broken)


def test_holm_stands_beside_the_raw_p() -> None:
    worse = [shifted(NLL, lambda i, k=k: 0.01 * (-1) ** (i % 3) * k + 0.01) for k in range(1, 4)]  # type: ignore[misc]
    found = against(result(*(row(f"m{k}") for k in range(3))), result(*(row(f"m{k}", nll) for k, nll in enumerate(worse))))
    tested = sorted((f.p, f.holm) for f in found.findings if f.p is not None and f.holm is not None)
    assert len(tested) == found.tests == 3
    assert tested[0][1] == pytest.approx(min(1.0, 3 * tested[0][0]))


# Thresholds.


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("perplexity:+1%", ("perplexity", 1.0, True, True, None)),
        ("kl_mean:+0.01", ("kl_mean", 0.01, False, True, None)),
        ("kivi:bits=2,group=32/tokens_per_s:-5%", ("tokens_per_s", -5.0, True, False, "kivi:bits=2,group=32")),
        ("perplexity:+0%", ("perplexity", 0.0, True, True, None)),
    ],
)
def test_thresholds_parse(text: str, wanted: tuple[Any, ...]) -> None:
    found = Threshold.parse(text)
    assert (found.metric, found.limit, found.percent, found.rising, found.method) == wanted


@pytest.mark.parametrize("text", ["perplexity", "perplexity:1%", "perplexity:+%", ":+1%", "perplexity:+x"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--fail-on"):
        Threshold.parse(text)


def crossed(a: Doc, b: Doc, *texts: str) -> tuple[int, int]:
    found = against(a, b)
    checked = check([Threshold.parse(t) for t in texts], found.findings, found.methods)
    return len(checked.crossed), len(checked.untested)


def test_a_paired_limit_fails_only_when_the_whole_interval_is_beyond() -> None:
    b = result(row("knorm", shifted(NLL, lambda i: 0.02 + 0.004 * (i % 3))))
    low = find(against(A, b), "perplexity").change.percent_low or pytest.fail("an interval")
    assert crossed(A, b, f"perplexity:+{low - 0.01:.4f}%") == (1, 0)
    assert crossed(A, b, f"perplexity:+{low + 0.01:.4f}%") == (0, 0)
    assert crossed(b, A, "perplexity:+0%") == (0, 0), "getting better never fails"
    assert crossed(A, A, "perplexity:+0%") == (0, 0)
    assert crossed(A, b, "perplexity:+0.1") == (1, 0)
    assert crossed(A, b, "perplexity:+1") == (0, 0)


def test_exact_and_noisy_limits() -> None:
    b = result(row("knorm", times=[t * 1.2 for t in TIMES], stored=1020))
    assert crossed(A, b, "stored_bytes:+1%") == (1, 0)
    assert crossed(A, b, "stored_bytes:+2%") == (0, 0), "more than the limit, not the limit"
    assert crossed(A, b, "stored_bytes:+19") == (1, 0)
    assert crossed(A, b, "tokens_per_s:-5%") == (1, 0)
    assert crossed(A, b, "tokens_per_s:-30%") == (0, 0)


def test_a_rise_from_nothing_is_beyond_any_percentage() -> None:
    a, b = (result(row("knorm") | {"measured": [figure("kl_mean", k, "paired", samples=[k, k * 1.1])]}) for k in (0.0, 0.1))
    assert crossed(a, b, "kl_mean:+50%") == (1, 0)


def test_what_cannot_be_checked_fails_and_what_cannot_be_tested_is_told() -> None:
    assert crossed(A, changed(A, "corpus", tokens_hash="u"), "perplexity:+1%") == (1, 0)
    assert crossed(A, result(row("knorm", status="failed") | {"measured": []}), "perplexity:+1%") == (1, 0)
    assert crossed(result(row("knorm", [3.0])), result(row("knorm", [4.0])), "perplexity:+1%") == (0, 1)
    two = result(row("knorm"), row("tova"))
    assert crossed(two, result(row("knorm")), "tova/perplexity:+1%") == (1, 0)
    assert crossed(two, result(row("knorm")), "perplexity:+1%") == (0, 0)


def test_unknown_names_and_wrong_signs_are_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean perplexity"):
        crossed(A, A, "perplexty:+1%")
    with pytest.raises(UnknownName, match="did you mean knorm"):
        crossed(A, A, "knrm/perplexity:+1%")
    with pytest.raises(UsageError, match="gets better"):
        crossed(A, A, "perplexity:-1%")
    with pytest.raises(UsageError, match="gets better"):
        crossed(A, A, "tokens_per_s:+1%")


# Rendering and the command.

LONG = "hybrid:retain=0.18,k_bits=2,v_bits=2,guard=0.5,group=64,window=128"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    worse = shifted(NLL, lambda i: 0.02 + 0.001 * i)
    a = result(row("baseline"), row("knorm"), row(LONG), name="before")
    b = changed(result(row("baseline"), row("knorm", worse), row(LONG, stored=990), name="after"), "environment", torch="2.14.0")
    for document in (a, b):
        folder = tmp_path / document["run"]
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(document))
    return tmp_path / "before" / "result.json", tmp_path / "after" / "result.json"


def run(*args: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in args])


def test_text_keeps_to_120_columns_and_aligns(files: tuple[Path, Path]) -> None:
    found = run(*files)
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    assert max(map(len, lines)) <= 120
    assert "  ~  all 3 rows are equal" in lines
    table = [line for line in lines if line.startswith(("  baseline", "  knorm"))]
    assert table[1].rstrip().endswith("- worse")
    assert "+2.2" in table[1]
    assert "warning: torch differs: 2.13.0 in A, 2.14.0 in B" in found.stderr
    assert "warning" not in found.stdout


def test_narrow_text_cuts_names_not_figures(files: tuple[Path, Path]) -> None:
    found = against(*(json.loads(f.read_text()) for f in files))
    narrow = render.text(found, width=80)
    assert max(map(len, narrow.splitlines()[6:-2])) <= 80
    assert "- worse" in narrow


def test_what_all_points_share_is_said_once() -> None:
    a = row("knorm")
    a["measured"] = [{**a["measured"][2], "point": f"batch={n},context=8"} for n in (1, 2)]
    b = copy.deepcopy(a)
    b["measured"][1]["samples"]["0"] = 1.0
    lines = render.text(against(result(a), result(b))).splitlines()
    assert "tokens_per_s at context=8 · higher is better · medians of 5 repeats, Mann-Whitney" in lines
    assert [line.split()[:2] for line in lines if line.startswith("  knorm")] == [["knorm", "batch=1"], ["knorm", "batch=2"]]


def test_colour_changes_no_width() -> None:
    b = result(row("knorm", stored=10), row("tova", stored=2000))
    found = against(result(row("knorm"), row("tova")), b)
    painted = render.text(found, lambda text, kind: click.style(text, fg="red" if kind == "worse" else "green"))
    assert click.unstyle(painted) == render.text(found)
    assert painted != render.text(found)


def test_figures_that_differ_are_written_differently() -> None:
    found = render.text(against(result(row("knorm", stored=12345678)), result(row("knorm", stored=12345679))))
    line = next(line for line in found.splitlines() if line.startswith("  knorm") and "11.77" in line)
    cells = line.split()
    assert cells[1] != cells[2]
    assert "+8e-06" in line


def test_json_and_csv_hold_every_finding_raw(files: tuple[Path, Path]) -> None:
    data = json.loads(run(*files, "--format", "json", "--fail-on", "perplexity:+1%").stdout)
    rows = list(csv.DictReader(io.StringIO(run(*files, "--format", "csv").stdout)))
    assert len(data["findings"]) == len(rows) == 9
    assert rows[0].keys() == data["findings"][0].keys()
    knorm = next(f for f in data["findings"] if f["method"] == "knorm" and f["metric"] == "perplexity")
    assert knorm["change_pct_low"] < knorm["change_pct"] < knorm["change_pct_high"]
    assert (knorm["verdict"], knorm["verdict_word"]) == ("-", "worse")
    assert len(data["crossed"]) == 1
    assert data["warnings"] == ["torch differs: 2.13.0 in A, 2.14.0 in B"]


def test_markdown_is_whole(files: tuple[Path, Path]) -> None:
    found = run(*files, "--format", "markdown").stdout
    assert LONG in found
    assert "p (Holm)" in found
    assert "| knorm" in found


def test_fail_on_sets_the_exit_code_and_says_why_on_stderr(files: tuple[Path, Path]) -> None:
    found = run(*files, "--fail-on", "perplexity:+1%", "--fail-on", "stored_bytes:+1%")
    assert found.exit_code == ExitCode.THRESHOLD
    assert found.stderr.splitlines()[-1].startswith("failed: knorm/perplexity: +2.2")
    assert "failed" not in found.stdout
    assert run(*files, "--fail-on", "perplexity:+10%").exit_code == ExitCode.OK


def test_runs_are_found_by_file_folder_and_name(files: tuple[Path, Path]) -> None:
    by_file = run(*files).stdout
    assert run(files[0].parent, files[1].parent).stdout == by_file
    assert run("before", "after", "--output-dir", files[0].parent.parent).stdout == by_file
    missing = run("befor", "after", "--output-dir", files[0].parent.parent).exception
    assert isinstance(missing, UnknownName)
    assert missing.nearest == ["before"]
    (files[0]).write_text("{")
    assert isinstance(run(*files).exception, ResultError)


def test_latex_has_a_table_for_each_metric(files: tuple[Path, Path]) -> None:
    found = run(*files, "--format", "latex").stdout
    assert found.count(r"\begin{table}") == found.count(r"\end{table}") == run(*files, "--format", "markdown").stdout.count("\n### ")
    assert found.startswith("% \\usepackage{booktabs}\n% A ")
    assert LONG.replace("_", r"\_") in found
    assert "p (Holm)" in found
    assert not re.search(r"(?<!\\)[%#_]", "\n".join(line for line in found.splitlines() if not line.startswith("%")))
