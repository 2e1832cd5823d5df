"""The needle grid: haystacks of an exact length, scores checked by hand, effective context, and a run on the embedded model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sessions import opened, told_by

from kvbench.engine.plan import plan
from kvbench.errors import CorpusError, UsageError
from kvbench.evaluators.needle import Needle, parse_depths
from kvbench.figures import Grid, Table
from kvbench.needles.fillers import LONGEST_SENTENCE, Filler, open_filler, read_filler, split_sentences
from kvbench.needles.haystack import Needle as Hidden
from kvbench.needles.haystack import insert, last_sentence, place
from kvbench.needles.questions import DIGITS, KINDS, Cell, Score, ask, effective_context, names_in, score, similarity
from kvbench.spec import EvaluatorSpec, MethodSpec, RunSpec
from kvbench.texts.corpora import open_text
from kvbench.texts.documents import Text

SPEC = RunSpec(context=512, continuation=32)


def words(text: str) -> int:
    return len(text.split())


def word_counts(texts: Sequence[str]) -> list[int]:
    return [words(text) for text in texts]


@pytest.fixture(scope="module")
def filler() -> Filler:
    return read_filler(open_text("language_reference", None), 500, word_counts)


def spec_of(text: str, **changes: Any) -> RunSpec:
    methods = (MethodSpec.parse("baseline"), MethodSpec.parse("random"))
    return replace(SPEC, methods=methods, evaluators=(EvaluatorSpec.parse(text),), **changes)


# Scores, by hand

ONE, TWO = ("1234567",), ("1234567", "7654321")


@pytest.mark.parametrize(
    ("answer", "expected", "exact", "graded"),
    [
        ("1234567.", ONE, 1, 1),
        ("The number is 1234567 and not 7654321.", ONE, 1, 1),
        ("7654321, or 1234567", ONE, 0, 1),  # it names the value, but not first
        ("", ONE, 0, 0),
        (" \n", ONE, 0, 0),
        ("I don't know.", ONE, 0, 0),
        ("I cannot share secret numbers.", TWO, 0, 0),
        ("12345678", ONE, 0, 0),
        ("0001234567", ONE, 0, 0),
        ("1234567.5", ONE, 0, 0),
        ("x1234567", ONE, 0, 0),
        ("1,234,567", ONE, 1, 1),
        ("1\u202f234\u202f567", ONE, 1, 1),
        ("\uff11\uff12\uff13\uff14\uff15\uff16\uff17\u3002", ONE, 1, 1),
        ("答案是1234567。", ONE, 1, 1),
        ("**1234567**", ONE, 1, 1),
        ("123-4567", ONE, 0, 0),
        ("1234567 and 7654321", TWO, 1, 1),
        ("7654321,1234567", TWO, 1, 1),
        ("1234567, 1234567 and 7654321", TWO, 1, 1),  # said twice
        ("1234567, 1111111 and 7654321", TWO, 0, 1),
        ("7654321", TWO, 0, 0.5),
        ("Amber-Falcon", ("amber-falcon",), 1, 1),
        ("the amber\u2011falcon, of course", ("amber-falcon",), 1, 1),
        ("amber falcon", ("amber-falcon",), 0, 0),
        ("amber-falconry", ("amber-falcon",), 0, 0),
        ("well-known: amber-falcon", ("amber-falcon",), 0, 1),
    ],
)
def test_scores_checked_by_hand(answer: str, expected: tuple[str, ...], exact: float, graded: float) -> None:
    found = score(answer, expected)
    assert (found.exact, found.graded) == (exact, graded)


def test_similarity_is_levenshteins() -> None:
    assert similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert similarity("", "") == 1
    assert similarity("", "abc") == 0
    assert score("1234568", ONE) == Score(0.0, 0.0, pytest.approx(6 / 7))
    assert score("1234567 and 7654322", TWO).similarity == pytest.approx((1 + 6 / 7) / 2)
    assert score("no idea", TWO).similarity == 0


def test_grouped_digits_are_one_number_and_lists_are_not() -> None:
    assert names_in("12,345,678; 123,456", "numbers") == ["12345678", "123456"]
    assert names_in("1234567,7654321, 3.14", "numbers") == ["1234567", "7654321"]
    assert names_in("٣٤ and 5", "numbers") == ["34", "5"]


def test_effective_context_needs_every_shorter_length_above_the_bar() -> None:
    assert effective_context({256: 1.0, 512: 0.9, 1024: 0.86}, 1.0, 0.85) == 1024
    assert effective_context({1024: 1.0, 512: 0.8, 256: 1.0}, 1.0, 0.85) == 256  # a lucky long one does not count
    assert effective_context({256: 0.4, 512: 0.34, 1024: 0.33}, 0.4, 0.85) == 512
    assert effective_context({256: 0.5}, 1.0, 0.85) == 0
    assert effective_context({256: 1.0}, 0.0, 0.85) is None


# What is hidden


@pytest.mark.parametrize("values", ["numbers", "words"])
@pytest.mark.parametrize("kind", KINDS)
def test_needles_are_drawn_by_cell_and_answer_their_question(kind: str, values: str) -> None:
    cell = Cell(kind, 1024, 25.0, 0)
    found = ask(cell, 0, 4, values)
    assert Cell.of(cell.key) == cell
    assert found == ask(cell, 0, 4, values)
    others = [ask(c, s, 4, values) for c, s in ((cell, 1), (replace(cell, sample=1), 0), (replace(cell, depth=50.0), 0))]
    assert all(other.expected != found.expected for other in others)
    assert [len(found.needles), len(found.expected)] == {"single": [1, 1], "multi_key": [4, 1], "multi_value": [4, 4]}[kind]
    assert found.needles[0].depth == 0.25
    assert found.expected[0] in found.needles[0].text
    told = " ".join(needle.text for needle in found.needles)
    assert all(told.count(value) == 1 for value in found.expected)
    assert not any(value in found.question + found.answer_start + found.intro for value in found.expected)
    assert score(told.partition(" is ")[2].partition(".")[0], found.expected[:1]).exact == 1
    assert all(len(value) == DIGITS for value in found.expected) or values == "words"
    if kind == "multi_value":
        assert [needle.depth for needle in found.needles] == pytest.approx([0.25, 0.4375, 0.625, 0.8125])
    if kind == "multi_key":
        assert len({needle.text.partition(" is ")[0] for needle in found.needles}) == 4


# Haystacks


def test_sentences_put_together_are_the_text_with_single_spaces() -> None:
    text = 'He said "no." Then (yes!) left…  Next\nline. 你好。世界\uff01 3.14 is\tone. end'
    found = split_sentences(text)
    assert found[:4] == ['He said "no." ', "Then (yes!) ", "left… ", "Next line. "]
    assert "你好。" in found
    assert found[-1] == "end"
    table = "row | " * 300 + "x" * 3000
    assert "".join(found) == " ".join(text.split())
    assert "".join(split_sentences(table)) == table
    assert max(map(len, split_sentences(table))) <= 2 * LONGEST_SENTENCE


@pytest.mark.parametrize("length", [60, 137, 400])
@pytest.mark.parametrize("depth", [0, 0.25, 0.5, 1])
def test_a_haystack_is_as_long_as_asked_to_the_word(filler: Filler, length: int, depth: float) -> None:
    last = last_sentence(filler, length, random.Random(0))
    needle = Hidden("The secret number for keen river is 1234567.", depth)
    found = place(filler, [needle], length, last, lambda text: words(text) + 10)
    assert words(found.text) + 10 == length
    before, _, after = found.text.partition(needle.text)
    assert after or depth == 1
    rest = f"{before.strip()} {after.strip()}".strip()
    assert rest in filler.text
    assert rest.endswith(filler.sentences[last].strip())
    assert abs(found.depths[0] - depth) <= 0.5 * 1.01 * LONGEST_SENTENCE / len(rest)
    assert not before or depth == 0 or before.rstrip()[-1] in ".!?:*=|`\")'…" or len(before) >= LONGEST_SENTENCE
    assert found == place(filler, [needle], length, last, lambda text: words(text) + 10)


def test_needles_stand_at_the_nearest_boundary_in_their_order() -> None:
    hay = insert(["aaa. ", "bbb. ", "ccc. ", "ddd"], [Hidden("N1.", 0.3), Hidden("N2.", 1.0), Hidden("N3.", 0.2), Hidden("N4.", 0.0)])
    assert hay.text == "N4. aaa. N1. N3. bbb. ccc. ddd N2."
    assert hay.depths == pytest.approx((5 / 18, 1.0, 5 / 18, 0.0))
    assert insert([], [Hidden("N1.", 0.5)]).text == "N1."


def test_a_filler_that_is_too_short_says_how_long_it_is() -> None:
    with pytest.raises(CorpusError, match=r"tiny.txt has 3 tokens, and the longest haystack needs 4"):
        read_filler(Text("tiny.txt", ["one two three."], "\n"), 4, word_counts)
    found = read_filler(Text("tiny.txt", ["one. two. three. four five."], "\n"), 5, word_counts)
    needle = Hidden("N.", 0.5)
    assert place(found, [needle], 6, last_sentence(found, 5, random.Random(1)), lambda text: words(text) + 1).text.count("N.") == 1
    with pytest.raises(ValueError, match="take 9 tokens, and 5"):
        place(found, [needle], 5, 3, lambda text: words(text) + 8)


def test_fillers_that_cannot_be_read_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVBENCH_DATA", raising=False)
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": }\n')
    (tmp_path / "empty.txt").write_text(" \n")
    cases = {
        "gone.txt": "gone.txt' is not there", "latin.txt": "latin.txt' is not UTF-8", "broken.jsonl": "line 2 is not JSON",
        "empty.txt": "empty.txt' is empty",
    }  # fmt: skip
    for name, message in cases.items():
        with pytest.raises(CorpusError, match=message):
            plan(spec_of(f"needle:filler={tmp_path / name}"))
    with pytest.raises(UsageError, match="language_referenc'; did you mean language_reference"):
        plan(spec_of("needle:filler=language_referenc"))
    with pytest.raises(CorpusError, match=r"haystack/paul_graham_essays.txt, which is not there"):
        plan(spec_of("needle:filler=haystack"))
    (tmp_path / "good.txt").write_text("One. Two.")
    own = spec_of("needle:filler=corpus", corpus=replace(SPEC.corpus, name=str(tmp_path / "good.txt")))
    assert open_filler("corpus", own).at_least(9)
    assert plan(own)


@pytest.mark.data
def test_the_mirrors_essays_are_a_filler(data_dir: Path) -> None:
    spec = replace(SPEC, corpus=replace(SPEC.corpus, data_dir=str(data_dir)))
    Needle(filler="haystack").check(spec)
    assert read_filler(open_filler("haystack", spec), 5000, word_counts).tokens >= 5000


# Parameters and units


def test_parameters_are_checked() -> None:
    assert parse_depths("5") == [0, 25, 50, 75, 100]
    assert parse_depths("1") == [50]
    assert parse_depths("50%") == [50]
    assert parse_depths("100+0+12.5") == [0, 12.5, 100]
    for wrong, message in {
        "needle:depths=0+101": "from 0 to 100", "needle:depths=a+b": "how many", "needle:depths=50+50": "none twice",
        "needle:kinds=multikey": "it must be single, multi_key or multi_value",
        "needle:values=uuids": "it must be numbers or words",
        "needle:lengths=512+512": "twice", "needle:lengths=512+x": "whole numbers", "needle:question=no": "must be hidden or visible",
        "needle:needles=1": "needles=1", "needle:threshold=0.0": "threshold", "needle:depths=0": "1 to 100",
    }.items():  # fmt: skip
        with pytest.raises(UsageError, match=message):
            plan(spec_of(wrong))


def test_units_are_cells_sample_by_sample_and_lengths_bound_the_model() -> None:
    needle = Needle(lengths="1024+512", depths="0+100", kinds="single+multi_key", samples=2)
    assert [cell.key for cell in needle._cells(SPEC)][:5] == [
        "single/512/0/0", "single/512/100/0", "single/1024/0/0", "single/1024/100/0", "multi_key/512/0/0"
    ]  # fmt: skip
    assert len(needle.units(SPEC, ["baseline"])) == 16
    assert needle.longest(SPEC) == 1024
    assert Needle()._lengths(SPEC) == [256, 320, 384, 448, 512]
    assert Needle()._lengths(replace(SPEC, context=200)) == [200]
    config = {
        "model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "vocab_size": 9,
        "intermediate_size": 8, "max_position_embeddings": 1000,
    }  # fmt: skip
    spec = spec_of("needle:lengths=512+1024")
    with pytest.raises(UsageError, match=r"'needle' reads sequences of 1,024 tokens, beyond this model's 1,000"):
        plan(replace(spec, model=replace(spec.model, config=config)))


# What records show


def data(exact: float, graded: float) -> dict[str, Any]:
    return {"exact": exact, "graded": graded, "similarity": graded, "stored_bytes": 50, "baseline_bytes": 100}


def records() -> dict[str, dict[str, dict[str, Any]]]:
    grid = {Cell("single", length, depth, 0).key: (length, depth) for length in (256, 512) for depth in (0.0, 100.0)}
    return {
        "baseline": {key: data(1, 1) for key in grid},
        "snapkv": {key: data(float(length == 256), float(length == 256)) for key, (length, _) in grid.items()},
        "random": {key: data(0, 0) for key in list(grid)[:1]},
    }


def test_summaries_tell_scores_and_effective_context() -> None:
    found = Needle().summarise(records(), "baseline")
    snapkv = found["snapkv"].fields
    assert snapkv["needle_exact"] == 0.5
    assert snapkv["needle_graded"] == 0.5
    assert snapkv["needle_prompts"] == 4
    assert snapkv["needle_by_length"] == {"256": 1.0, "512": 0.0}
    assert snapkv["compression_factor"] == 2
    assert [found[label].fields["needle_effective_context"] for label in ("baseline", "snapkv", "random")] == [512, 256, 0]
    measured = {(m.metric, m.point): m for m in found["snapkv"].measured}
    assert set(measured) == {("needle_exact", ""), ("needle_graded", ""), ("needle_graded", "length=256"), ("needle_graded", "length=512")}
    assert set(measured["needle_exact", ""].samples) == set(records()["baseline"])
    assert measured["needle_exact", ""].evidence == "paired"
    alone = Needle().summarise({"snapkv": records()["snapkv"]}, None)["snapkv"].fields
    assert alone["needle_effective_context"] is None
    assert alone["needle_exact"] == 0.5
    assert Needle().summarise({"baseline": {}}, "baseline") == {}


def test_figures_are_tables_and_one_grid_a_method_with_holes_where_nothing_is_measured() -> None:
    facts = {"filler": "tiny.txt", "lengths": [256, 512, 1024]}
    found = Needle(depths="0+50+100").figures(records(), "baseline", facts)
    scores, lengths = [f for f in found if isinstance(f, Table)]
    grids = {f.method: f for f in found if isinstance(f, Grid)}
    assert [row[0] for row in scores.rows] == ["baseline", "snapkv", "random"]
    assert any("Holm" in note for note in scores.notes)
    assert any("tiny.txt" in note for note in scores.notes)
    assert [row[-1] for row in lengths.rows] == ["512", "256", "< 256"]
    assert lengths.headings[-1] == "effective context"
    assert lengths.rows[1][1].startswith("100.0")
    assert lengths.rows[1][2].startswith("0.0")
    assert grids["snapkv"].values == [[1.0, 0.0, None], [None, None, None], [1.0, 0.0, None]]
    assert grids["random"].values[0] == [0.0, None, None]
    assert (grids["snapkv"].rows, grids["snapkv"].columns) == (["0 %", "50 %", "100 %"], ["256", "512", "1,024"])
    assert Needle().figures({}, "baseline", {}) == []


# Through a model


@pytest.mark.model
def test_the_embedded_model_finds_its_needles(embedded_model: Any) -> None:
    """Every prompt is as long as asked, the question is no part of what is compressed, and random eviction loses the needle."""
    spec = spec_of("needle:lengths=256,depths=0+100", context=256)
    session, needle = opened(embedded_model, spec), Needle(lengths="256", depths="0+100")
    assert needle.prepare(session, lambda *_: None)["chat"] is True
    context = told_by(needle, session)
    first = context.records["baseline"]["single/256/0/0"]
    assert [d["exact"] for d in context.records["baseline"].values()] == [1, 1]
    assert [d["graded"] for d in context.records["random"].values()] == [0, 0]
    assert 235 <= first["context_tokens"] + first["question_tokens"] <= 256 - 16
    assert first["placed"] == [0.0]
    assert context.records["random"]["single/256/0/0"]["stored_bytes"] == pytest.approx(first["stored_bytes"] / 2, rel=0.02)
    prompts, filler = session.kept["needle"]
    hidden, visible = (replace(prompts, hidden=h).make(Cell("single", 256, 0.0, 0), filler) for h in (True, False))
    tokenizer = embedded_model.tokenizer
    assert "What is" not in tokenizer.decode(hidden.ask.context)
    assert hidden.question.expected[0] in tokenizer.decode(hidden.ask.context)
    assert "What is" in tokenizer.decode(visible.ask.context)
    assert len(visible.ask.question) == 1
    assert hidden.ask.context + hidden.ask.question == visible.ask.context + visible.ask.question
    with pytest.raises(UsageError, match="90 tokens are too few for kind 'single'"):
        prompts.check_room(Cell("single", 90, 0.0, 0))


def test_a_model_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a tokenizer"):
        Needle().prepare(SimpleNamespace(loaded=SimpleNamespace(tokenizer=None), spec=SPEC), lambda *_: None)  # type: ignore[arg-type]
