"""Free-running text against the baseline's: its measures by hand, and one prompt through a tiny model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from sessions import told_by

from kvbench.engine.plan import resolve_methods
from kvbench.evaluators.drift import Drift, marks
from kvbench.figures import Table
from kvbench.instruments.session import Session
from kvbench.instruments.tiny import make_tiny_config
from kvbench.metrics.likeness import agreement, first_divergence, normalised, repetition, visible
from kvbench.spec import EvaluatorSpec, MethodSpec, ModelSpec, RunSpec
from kvbench.texts.corpora import Windows

BYTES = {"stored_bytes": 500, "baseline_bytes": 2000}


def record(tokens: list[int], **more: Any) -> dict[str, Any]:
    """A record as the evaluator writes it, of a text whose tokens are characters."""
    text = "".join(map(chr, tokens))
    return {"tokens": tokens, "text": text, "short_text": text[:8], "ended": False, **BYTES, "prompt_end": "Once", **more}


def said(*texts: str) -> dict[str, dict[str, Any]]:
    return {str(i): record([ord(c) for c in text]) for i, text in enumerate(texts)}


def tables(records: Mapping[str, Any], drift: Drift | None = None, facts: Mapping[str, Any] | None = None) -> dict[str, Table]:
    found = (drift or Drift()).figures(records, "baseline", facts or {})
    return {table.name: table for table in found if isinstance(table, Table)}


def cell(table: Table, label: str, heading: str) -> str:
    return next(row for row in table.rows if row[0] == label)[list(table.headings).index(heading)]


# Measures


@pytest.mark.parametrize(
    ("own", "base", "at", "agree"),
    [
        ([1, 2, 3], [1, 2, 3], None, 1.0),
        ([], [], None, 1.0),
        ([], [1, 2], 0, 0.0),
        ([1, 2], [], 0, 0.0),
        ([1, 2, 3, 4], [1, 2], 2, 0.5),  # the baseline is shorter
        ([1], [1, 2], 1, 0.5),
        ([9, 2, 3, 4], [1, 2, 3, 4], 0, 0.75),
        ([1, 2, 9], [1, 2, 3], 2, 2 / 3),
    ],
)
def test_divergence_and_agreement(own: list[int], base: list[int], at: int | None, agree: float) -> None:
    assert first_divergence(own, base) == at
    assert agreement(own, base) == pytest.approx(agree)


def test_repetition_is_the_share_of_repeated_n_grams() -> None:
    assert repetition([1, 2, 3, 4, 5, 6, 7]) == 0.0
    assert repetition([5] * 11) == pytest.approx(1 - 1 / 8)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 - 4 / 5)
    assert repetition([1, 2, 3, 4]) == 0.0
    assert repetition([1, 2, 3]) is None
    assert repetition([]) is None


def test_normalised_text_is_one_for_case_space_and_forms() -> None:
    assert normalised("  Straße\n\tCafé  ") == normalised("STRASSE cafe\u0301") == "strasse café"
    assert normalised("ﬁve") == normalised("FIVE")
    assert normalised("five") != normalised("five.")
    assert normalised(" \n ") == normalised("") == ""
    assert normalised("東京") != normalised("京都")


def test_visible_text_is_one_line_that_no_terminal_obeys() -> None:
    assert visible("a\nb\tc\x1b[31m") == "a↵b\\tc\\x1b[31m"
    assert visible("naïve 東京 🙂") == "naïve 東京 🙂"
    assert visible("\ud800") == "\\ud800"  # half a surrogate pair, which no encoding writes


@pytest.mark.parametrize(("tokens", "wanted"), [(64, [8, 16, 32, 64]), (20, [8, 16, 20]), (8, [8]), (3, [3]), (100, [8, 16, 32, 64, 100])])
def test_marks_double_up_to_the_longest_text(tokens: int, wanted: list[int]) -> None:
    assert marks(tokens) == wanted


# Records


BASE = said("abcdefghijklmnop", "abcdefghijklmnop", "xyxyxyxyxyxyxyxy", "")
OWN = said("abcdefghijklmnop", "abXdefghij", "xyxyxyxyxYxyxyxyZZ", "q")
RECORDS = {"baseline": BASE, "m": OWN}


def test_summary_by_hand() -> None:
    found = Drift(tokens=32).summarise(RECORDS, "baseline")
    fields, values = found["m"].fields, {m.metric: m for m in found["m"].measured}
    assert values["drift_agreement"].samples == pytest.approx({"0": 1.0, "1": 9 / 16, "2": 15 / 18, "3": 0.0})
    assert values["drift_prefix"].samples == pytest.approx({"0": 1.0, "1": 2 / 16, "2": 9 / 18, "3": 0.0})
    assert values["drift_length_shift"].samples == {"0": 0.0, "1": -6.0, "2": 2.0, "3": 1.0}
    assert values["drift_length_shift"].value == -0.75
    assert values["drift_exact_match"].samples == {"0": 1.0, "1": 0.0, "2": 1.0, "3": 0.0}
    assert (values["drift_exact_match"].point, values["drift_agreement"].point) == ("short=8", "tokens=32")
    assert fields["drift_median_divergence"] == 5.5  # of 0, 2, 9 and never
    assert fields["drift_same_after"] == {"8": 0.5, "16": 0.25, "32": 0.25}
    assert (fields["drift_prompts"], fields["compression_factor"], fields["compression_ratio"]) == (4, 4.0, 0.75)


def test_the_baseline_has_its_own_repetition_and_nothing_to_differ_from() -> None:
    found = Drift().summarise(RECORDS, "baseline")["baseline"]
    assert [m.metric for m in found.measured] == ["drift_repetition"]
    assert found.measured[0].samples == pytest.approx({"0": 0.0, "1": 0.0, "2": 1 - 2 / 13})  # nothing was written on prompt 3
    assert found.measured[0].better == "lower"


def test_identical_texts_never_diverge() -> None:
    found = Drift().summarise({"baseline": BASE, "m": BASE}, "baseline")["m"].fields
    assert found["drift_median_divergence"] is None
    assert set(found["drift_same_after"].values()) == {1.0}
    assert (found["drift_agreement"], found["drift_exact_match"], found["drift_length_shift"]) == (1.0, 1.0, 0.0)
    shown = tables({"baseline": BASE, "m": BASE})
    assert (cell(shown["divergence"], "m", "median"), cell(shown["divergence"], "m", "earliest")) == ("–", "–")
    assert shown["worst"].rows == []
    assert shown["worst"].notes[-1] == "the same as the baseline's to the end: m"


def test_half_that_never_diverge_have_no_median() -> None:
    base, own = said("aaaa", "bbbb"), said("aaaa", "bXbb")
    assert Drift().summarise({"baseline": base, "m": own}, "baseline")["m"].fields["drift_median_divergence"] is None
    three = Drift().summarise({"baseline": said("aa", "bb", "cc"), "m": said("aX", "Xb", "cc")}, "baseline")["m"].fields
    assert three["drift_median_divergence"] == 1.0


def test_only_prompts_of_both_are_compared_and_no_record_is_no_figure() -> None:
    own = {"1": OWN["1"], "9": OWN["2"]}
    found = Drift().summarise({"baseline": BASE, "m": own, "none": {}}, "baseline")
    assert "none" not in found
    assert {key for m in found["m"].measured if m.metric == "drift_agreement" for key in m.samples} == {"1"}
    assert [m.metric for m in Drift().summarise({"m": OWN}, None)["m"].measured] == ["drift_repetition"]
    assert Drift().figures({"m": OWN}, None, {}) == []
    assert Drift().figures({}, "baseline", {}) == []


def test_tables_say_what_the_records_say() -> None:
    shown = tables(RECORDS, Drift(tokens=32), {"prompts": 4, "asked": 6})
    assert list(shown) == ["divergence", "likeness", "worst"]
    divergence = shown["divergence"]
    assert divergence.headings == ["method", "median", "earliest", "same after 8 %", "same after 16 %", "same after 32 %", "length shift"]
    assert (cell(divergence, "m", "median"), cell(divergence, "m", "earliest")) == ("5.5", "0")
    assert cell(divergence, "m", "same after 8 %") == "50.0 ± 35.0"
    assert cell(divergence, "m", "length shift").startswith("-0.8 [-6.")
    assert any("4 of 6 prompts" in note for note in divergence.notes)
    likeness = shown["likeness"]
    assert cell(likeness, "m", "first 8 match %") == "50.0 ± 35.0"
    assert cell(likeness, "baseline", "first 8 match %") == "–"
    assert cell(likeness, "m", "Δ repetition").startswith("-")
    text = "\n".join(likeness.notes)
    assert "Welleck" in text
    assert "Holm (1979) over the 1 test" in text


def test_worst_sample_is_the_earliest_with_the_place_where_texts_part() -> None:
    long = "The quick brown fox jumps over the lazy dog and "
    base = said(long + "sleeps.\nIt is late.", long + "runs")
    own = said(long + "sleeps.\nIt was early, and so on and on and on and on and on", long)
    base["0"]["prompt_end"] = "one\ntwo" + "x" * 80
    worst = tables({"baseline": base, "m": own})["worst"]
    row = worst.rows[0]
    assert (row[0], row[4:]) == ("m", ["1", "48"])
    assert row[2:4] == ["…he lazy dog and runs", "…he lazy dog and "]
    first = tables({"baseline": {"0": base["0"]}, "m": {"0": own["0"]}})["worst"].rows[0]
    assert first[1].startswith("…")
    assert first[2] == "… and sleeps.↵It is late."
    assert first[3].startswith("… and sleeps.↵It was early")
    assert all(len(text) <= 60 for text in first)
    silent = tables({"baseline": said("abc"), "m": said("")})["worst"].rows[0]
    assert silent[2:4] == ["abc", "(nothing)"]


# Units


def test_units_are_prompts_and_no_more_than_samples() -> None:
    spec = RunSpec(samples=3, context=100)
    assert [u.id for u in Drift().units(spec, ["baseline", "m"])] == ["drift/0", "drift/1", "drift/2"]
    assert len(Drift(prompts=2).units(spec, ["baseline"])) == 2
    assert Drift(tokens=50).longest(spec) == 150


# One prompt through a tiny model


class Letters:
    """A tokenizer whose tokens are characters."""

    eos_token_id: int | None = None

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(chr(0x4E00 + t) for t in tokens)


LABELS = ["baseline", "knorm:compression_ratio=0.0", "random:compression_ratio=0.9", "int4"]


@pytest.fixture
def session() -> Session:
    model = ModelSpec("tiny", "float64", cache_dtype="float64", device="cpu", random_weights=True, config=make_tiny_config("qwen2"))
    methods = tuple(MethodSpec.parse(label) for label in LABELS)
    spec = RunSpec(model=model, methods=methods, evaluators=(EvaluatorSpec("speed"),), samples=2, context=40, continuation=4)
    opened = Session.open(spec, resolve_methods(spec), lambda *_: None)
    tokens = torch.randint(3, 128, (2, 44), generator=torch.Generator().manual_seed(0))
    loaded = dataclasses.replace(opened.loaded, tokenizer=Letters())
    return dataclasses.replace(opened, windows=Windows(tokens, {}), loaded=loaded)  # type: ignore[arg-type]


def test_the_baseline_writes_what_the_model_writes(session: Session) -> None:
    """Against a greedy loop that prefills everything so far again for each token, uncompressed."""
    drift = Drift(prompts=1, tokens=12, short=4)
    told = told_by(drift, session)
    tokens = session.batch(0)[0, : session.spec.context + 1].tolist()
    runner, needs, wanted = session.runner, session.needs(["baseline"]), []
    for _ in range(12):
        last = runner.prefill(torch.tensor([[*tokens, *wanted]]), needs).last_hidden
        wanted.append(int(runner.logits(last).argmax()))
        if wanted[-1] == 2:  # the config's end of text
            wanted.pop()
            break
    baseline = told.records["baseline"]["0"]
    assert baseline["tokens"] == wanted
    assert baseline["text"] == Letters().decode(wanted)
    assert baseline["short_text"] == Letters().decode(wanted[:4])
    assert baseline["prompt_end"] == Letters().decode(tokens)[-48:]


def test_methods_go_their_own_way_or_none(session: Session) -> None:
    drift = Drift(tokens=12, short=4)
    told = told_by(drift, session)
    fields = {label: of.fields for label, of in drift.summarise(told.records, "baseline").items()}
    assert list(told.records["int4"]) == ["0", "1"]
    assert fields["knorm:compression_ratio=0.0"]["drift_same_after"]["12"] == 1.0
    assert fields["random:compression_ratio=0.9"]["drift_same_after"]["12"] < 1.0
    assert fields["int4"]["compression_factor"] > 4.0
    assert len(drift.figures(told.records, "baseline", drift.prepare(session, lambda *_: None))) == 3


def test_an_immediate_end_is_an_empty_text(session: Session) -> None:
    drift = Drift(prompts=1, tokens=6, short=2)
    first = told_by(drift, session).records["baseline"]["0"]["tokens"][0]
    session.loaded.tokenizer.eos_token_id = first
    told = told_by(drift, session)
    baseline = told.records["baseline"]["0"]
    assert (baseline["tokens"], baseline["text"], baseline["ended"]) == ([], "", True)
    found = drift.summarise(told.records, "baseline")
    assert found["knorm:compression_ratio=0.0"].fields["drift_agreement"] == 1.0
    assert found["baseline"].measured == []
    assert drift.figures(told.records, "baseline", {})


def test_a_method_that_breaks_is_its_own_rows_failure(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = type(session.runner).compress

    def breaking(runner: Any, method: Any, prompt: Any) -> Any:
        if method is session.methods["int4"]:
            raise ArithmeticError("broken")
        return whole(runner, method, prompt)

    monkeypatch.setattr(type(session.runner), "compress", breaking)
    told = told_by(Drift(prompts=1, tokens=4, short=2), session)
    assert told.failed == {"int4"}
    assert set(told.records) == set(LABELS) - {"int4"}
