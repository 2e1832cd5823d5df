"""Published figures: every one has its source, broken ones are refused, and each verdict follows from what is the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from kvbench.errors import PublishedError
from kvbench.methods.base import METHODS, Eviction, resolve
from kvbench.published import METRICS, Entry, Source, load
from kvbench.published.beside import VERDICTS, Beside, beside, table
from kvbench.published.ours import change_of
from kvbench.spec import MethodSpec, RunSpec

SHIPPED = load()
ROSTER = {
    "adakv", "asymkv", "h2o", "keydiff", "kivi", "knorm", "kvzap", "lagkv", "minicache", "observed_attention", "palu", "pyramidkv",
    "snapkv", "streaming_llm", "think", "tova", "turboquant",
}  # fmt: skip


def entry(**changes: Any) -> Entry:
    given: dict[str, Any] = {
        "model": "Llama-2-7B", "metric": "accuracy", "value": Decimal("12.74"), "baseline": Decimal("13.50"), "unit": "%",
        "setting": "2 bit", "protocol": "prefill", "scored": "lm-eval", "place": "Table 3", "source": Source("A paper", arxiv="2402.02750"),
        "method": "kivi:bits=2,group=32,residual=128", "task": "gsm8k", "harness": "lm-eval",
    }  # fmt: skip
    return Entry(**{**given, **changes})


def scores(metric: str, point: str, values: Mapping[str, float], low: float | None = None, high: float | None = None) -> dict[str, Any]:
    mean = sum(values.values()) / len(values)
    known = {"metric": metric, "value": mean, "unit": "1", "evidence": "paired", "better": "higher", "point": point}
    return {**known, "low": low, "high": high, "samples": dict(values)}


def questions(right: int, of: int = 1000) -> dict[str, float]:
    return {str(i): float(i < right) for i in range(of)}


def exact(metric: str, value: float) -> dict[str, Any]:
    return {"metric": metric, "value": value, "unit": "1", "evidence": "exact", "better": "higher"}


def gsm8k(right: int, low: float, high: float) -> dict[str, Any]:
    return scores("exact_match,strict-match", "task=gsm8k", questions(right), low, high)


BASELINE = {"method": "baseline", "status": "done", "audit": "real", "measured": [gsm8k(135, 0.115, 0.157)]}


def result(*rows: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    spec = {"context": 512, "continuation": 128, "compression_ratio": 0.5, "evaluators": [{"name": "tasks", "params": []}], "methods": []}
    found: dict[str, Any] = {
        "run": "mine", "complete": True, "protocol": "prefill", "kvbench_version": "0", "environment": {},
        "spec": spec, "model": {"id": "meta-llama/Llama-2-7b-hf"}, "corpus": {"name": "wikitext2"},
    }  # fmt: skip
    found |= changes
    return {**found, "results": [BASELINE, *({"status": "done", "audit": "real", **row} for row in rows)]}


def kivi(right: int = 127, low: float | None = 0.108, high: float | None = 0.149, label: str = "kivi:bits=2") -> dict[str, Any]:
    return {"method": label, "measured": [scores("exact_match,strict-match", "task=gsm8k", questions(right), low, high)]}


def judged(found: Mapping[str, Any], *entries: Entry) -> Beside:
    (one,) = beside(found, entries or [entry()])
    return one


# What ships


@pytest.mark.parametrize("one", SHIPPED, ids=lambda e: f"{e.method}-{e.task or e.metric}-{e.model}".replace("/", "_"))
def test_every_figure_has_a_source_a_place_and_a_method_of_ours(one: Entry) -> None:
    assert one.source.title
    assert one.source.arxiv or one.source.url.startswith("https://")
    assert one.place
    assert one.spec is not None
    assert one.spec.name in METHODS.names()
    method = resolve(MethodSpec.parse(one.method), RunSpec())
    assert not (one.exact and isinstance(method, Eviction)) or "compression_ratio" in one.spec.options
    assert one.baseline is not None or one.unit == "×" or not one.exact or one.metric == "compression_ratio"


def test_the_roster_is_covered_and_no_figure_is_there_twice() -> None:
    assert {one.spec.name for one in SHIPPED if one.spec} == ROSTER
    kinds = [(e.method, e.model, e.figure, e.context, e.setting, e.question, e.place, e.source.where) for e in SHIPPED]
    assert len(set(kinds)) == len(kinds)


def test_printed_digits_are_kept() -> None:
    (one,) = [e for e in SHIPPED if e.place == "Table 3" and e.model == "Llama-2-7B" and e.task == "gsm8k" and "bits=2" in e.method]
    assert (str(one.value), str(one.baseline)) == ("12.74", "13.50")
    assert change_of(one) == pytest.approx((-0.76, 0.01))


# Files that are wrong

GOOD = """[source]
title = "A paper"
arxiv = "2402.02750"

[[entries]]
method = "kivi:bits=2"
model = "Llama-2-7B"
metric = "accuracy"
task = "gsm8k"
value = 12.74
baseline = 13.50
unit = "%"
setting = "2 bit"
protocol = "prefill"
scored = "as in the paper"
place = "Table 3"
"""


@pytest.fixture
def reading(tmp_path: Path) -> Callable[[str], tuple[Entry, ...]]:
    def read(text: str) -> tuple[Entry, ...]:
        (tmp_path / "mine.toml").write_text(text)
        return load(tmp_path)

    return read


def test_a_file_reads_as_it_stands(reading: Callable[[str], tuple[Entry, ...]]) -> None:
    (one,) = reading(GOOD)
    assert reading(f"\ufeff{GOOD}") == (one,)
    assert (one.method, one.value, one.source.where) == ("kivi:bits=2", Decimal("12.74"), "arXiv 2402.02750")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('arxiv = "2402.02750"', "", "no arxiv or url"),
        ('title = "A paper"', 'title = ""', "$.source.title"),
        ('[source]\ntitle = "A paper"\narxiv = "2402.02750"', "", "missing required field `source`"),
        ('place = "Table 3"', 'place = " "', "$.place"),
        ('place = "Table 3"', "", "missing required field `place`"),
        ('metric = "accuracy"', 'metric = "acc"', "'metric' is 'acc'"),
        ('unit = "%"', 'unit = "nats"', "'unit' is 'nats'; there are perplexity (1)"),
        ('protocol = "prefill"', 'protocol = "usual"', "'usual' - at `$.protocol`"),
        ('scored = "as in the paper"', 'scored = "as in the paper"\nquestion = "maybe"', "'maybe' - at `$.question`"),
        ("value = 12.74", 'value = "twelve"', "$.value"),
        ("value = 12.74", "value = nan", "finite"),
        ('setting = "2 bit"', 'settings = "2 bit"', "unknown field `settings`"),
        ('method = "kivi:bits=2"', 'method = "kivi:bits"\nexact = "no"', "$.exact"),
        ('method = "kivi:bits=2"', 'method = "kivi:a=1,b"', "'method'"),
        ("[[entries]]", "[[entries", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named_by_file_entry_and_field(reading: Callable[[str], tuple[Entry, ...]], old: str, new: str, told: str) -> None:
    assert old in GOOD
    with pytest.raises(PublishedError) as raised:
        reading(GOOD.replace(old, new))
    assert "mine.toml" in raised.value.message
    assert told in raised.value.message


# Verdicts


def test_all_the_same_and_covered_is_reproduced() -> None:
    one = judged(result(kivi()))
    assert one.verdict == "reproduced", one.why
    assert "covers 12.74" in one.why
    assert one.ours is not None
    assert (one.ours.value, one.ours.baseline, one.ours.change) == pytest.approx((12.7, 13.5, -0.8))


def test_the_change_alone_may_be_covered() -> None:
    """Other questions shift both figures alike; −0.76 points is within the interval of the change, 12.74 % is not of the figure."""
    base = {**BASELINE, "measured": [gsm8k(400, 0.37, 0.43)]}
    found = result(kivi(393, 0.363, 0.423))
    found["results"][0] = base
    one = judged(found)
    assert one.verdict == "reproduced", one.why
    assert "excludes 12.74" in one.why
    assert "its change" in one.why


def test_all_the_same_and_not_covered_differs() -> None:
    one = judged(result(kivi(20, 0.012, 0.031)))
    assert one.verdict == "differs", one.why
    assert one.why.count("excludes") == 2


def test_an_edge_within_the_printed_digit_is_covered() -> None:
    assert judged(result(kivi(100, 0.08, 0.12736)), entry(baseline=None)).verdict == "reproduced"
    assert judged(result(kivi(100, 0.08, 0.12730)), entry(baseline=None)).verdict == "differs"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "Llama-2-13B"}, "model: Llama-2-13B (ours meta-llama/Llama-2-7b-hf)"),
        ({"method": "kivi:bits=4,group=32,residual=128"}, "setting: bits 4 (ours 2)"),
        ({"exact": False}, "setting: ours only comes near"),
        ({"protocol": "one-pass"}, "protocol: one-pass (ours prefill)"),
        ({"harness": "LongBench"}, "prompts and scoring: LongBench (ours lm-eval's)"),
        ({"question": "visible"}, "question: visible while compressing (ours hidden)"),
        ({"context": 4096}, "length: 4,096 tokens (ours not said)"),
    ],
)
def test_one_difference_makes_it_another_protocol_and_is_named(changes: Mapping[str, Any], told: str) -> None:
    one = judged(result(kivi()), entry(**changes))
    assert (one.verdict, one.why) == ("other protocol", told)
    assert one.ours is not None
    assert one.ours.change == pytest.approx(-0.8)


def test_a_row_that_another_method_stores_or_a_budget_turned_is_not_the_same() -> None:
    snapkv = entry(method="snapkv:compression_ratio=0.5")
    assert judged(result(kivi(label="snapkv")), snapkv).verdict == "reproduced"
    assert judged(result(kivi(label="snapkv+int4")), snapkv).why == "setting: stored as it is (ours by int4)"
    turned = {**kivi(label="snapkv@4x"), "budget_solved": {"parameters": {"compression_ratio": 0.75}}}
    assert judged(result(turned), snapkv).why == "setting: compression_ratio 0.5 (ours 0.75)"


def test_examples_that_the_run_set_itself_are_a_difference() -> None:
    found = result(kivi())
    found["spec"]["evaluators"] = [{"name": "tasks", "params": [["fewshot", 0]]}]
    assert judged(found).why == "examples: as many as the task's own (ours 0)"


@pytest.mark.parametrize(
    ("row", "published", "told"),
    [
        (kivi(), entry(task="coqa"), "this run did not measure coqa"),
        (kivi(), entry(metric="attention_speed", unit="×", baseline=None), "kvbench has no attention speed"),
        ({**kivi(), "status": "failed", "error": "out of memory"}, entry(), "the row failed: out of memory"),
        ({**kivi(), "audit": "no-op"}, entry(), "attention does not read what the method stores (no-op)"),
        (kivi(low=None, high=None), entry(baseline=None), "all the same, but our figure has no interval: more samples are needed"),
    ],
)
def test_nothing_to_set_against_it_is_not_comparable(row: Mapping[str, Any], published: Entry, told: str) -> None:
    one = judged(result(row), published)
    assert (one.verdict, one.why) == ("not comparable", told)


def test_perplexity_is_held_to_its_corpus_and_changes_in_percent() -> None:
    def perplexity(value: float, shift: float) -> dict[str, Any]:
        nll = {str(i): 1.6 + 0.01 * i + shift + 0.002 * (i % 3) * (shift > 0) for i in range(8)}
        known = {"metric": "perplexity", "value": value, "unit": "1", "evidence": "paired", "better": "lower", "scale": "log"}
        return {**known, "low": 0.9 * value, "high": 1.1 * value, "samples": nll}

    found = result({"method": "streaming_llm", "measured": [perplexity(5.5, 0.05)]}, protocol="streaming")
    found["results"][0] = {**BASELINE, "measured": [perplexity(5.2, 0.0)]}
    same = {"metric": "perplexity", "task": "wikitext2", "unit": "1", "harness": "", "protocol": "streaming"}
    published = entry(**same, method="streaming_llm:compression_ratio=0.5", value=Decimal("5.6"), baseline=Decimal("5.3"))
    one = judged(found, published)
    assert one.verdict == "reproduced", one.why
    assert one.ours is not None
    assert one.ours.change == pytest.approx(5.3, abs=0.3)
    elsewhere = judged({**found, "corpus": {"name": "language_reference"}}, published)
    assert (elsewhere.verdict, elsewhere.why) == ("other protocol", "data: wikitext2 (ours language_reference)")


def test_bytes_agree_to_the_printed_digit_or_differ() -> None:
    bytes_of = {"metric": "compression_factor", "unit": "×", "task": "", "baseline": None, "harness": ""}
    row = {"method": "kivi:bits=2", "measured": [exact("compression_factor", 5.024)]}
    assert judged(result(row), entry(**bytes_of, value=Decimal("5.02"))).verdict == "reproduced"
    assert judged(result(row), entry(**bytes_of, value=Decimal("5.03"))).verdict == "differs"
    removed = judged(result(row), entry(**{**bytes_of, "metric": "compression_ratio", "unit": "%"}, value=Decimal("80.1")))
    assert removed.verdict == "reproduced"


def test_a_suites_average_is_ours_over_the_tasks_that_were_asked() -> None:
    def row(label: str, shift: int) -> dict[str, Any]:
        kinds = (("qasper", 300), ("trec", 600))
        asked = [scores("f1", f"task=longbench_{name}", questions(right + shift), 0.1, 0.9) for name, right in kinds]
        return {"method": label, "measured": [*asked, scores("top1_agreement", "", questions(990))]}

    found = result(row("kivi:bits=2", -10))
    found["results"][0] = {**row("baseline", 0), "status": "done", "audit": "real"}
    one = judged(found, entry(task="longbench/average", metric="score", harness="lm-eval"))
    assert (one.verdict, one.why) == ("other protocol", "tasks: the suite's average (ours over 2)")
    assert one.ours is not None
    assert (one.ours.value, one.ours.change) == pytest.approx((44.0, -1.0))
    part = judged(found, entry(task="longbench/trec", metric="score"))
    assert part.ours is not None
    assert part.ours.value == pytest.approx(59.0)


# Selection and table


def test_only_methods_with_a_row_are_shown_and_the_nearest_parameters_come_first() -> None:
    near, far = entry(), entry(method="kivi:bits=4,group=32,residual=128")
    other, nothing = entry(method="h2o:compression_ratio=0.8"), entry(task="coqa")
    shown = beside(result(kivi()), [nothing, other, far, near])
    assert [one.entry for one in shown] == [near, far, nothing]
    assert [one.verdict for one in shown] == ["reproduced", "other protocol", "not comparable"]


def test_the_table_says_what_is_beside_what_and_where_it_is_printed() -> None:
    drawn = table(result(kivi()), [entry(), entry(task="coqa"), entry(task="truthfulqa")])
    assert drawn.name == "published"
    assert all(len(row) == len(drawn.headings) for row in drawn.rows)
    first, second = drawn.rows
    assert first[0] == "kivi:bits=2"
    assert first[3:4] + first[6:] == ("reproduced", "13.50 → 12.74 %", "-0.76 pp", "13.50 → 12.70 %", first[9])
    assert first[9].startswith("-0.80 pp [")
    assert second[3] == "not comparable"
    notes = "\n".join(drawn.notes)
    assert "[1] A paper, arXiv 2402.02750, Table 3" in notes
    assert "reproduced: all the same" in notes
    assert "1 more published figures" in notes


def test_the_reference_result_has_figures_beside_it_without_torch() -> None:
    root = Path(__file__).parent.parent
    code = (
        "import sys; from pathlib import Path; from kvbench.record import results; from kvbench.published.beside import beside, table\n"
        "found = results.load(Path('bench_results/reference')); shown = beside(found)\n"
        "names = {r['method'].split(':')[0].split('+')[0].split('@')[0] for r in found['results']}\n"
        "assert shown and {o.entry.spec.name for o in shown} <= names and table(found).rows\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_verdict_and_metric_is_explained() -> None:
    page = (Path(__file__).parent.parent / "kvbench/docs/published.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in (*VERDICTS, *METRICS))
