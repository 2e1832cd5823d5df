"""Windows of tokens: where they start, what is recorded, and what is said when the text will not do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvbench.errors import CorpusError, UnknownName, UsageError
from kvbench.models.weights import silent
from kvbench.spec import CorpusSpec, RunSpec
from kvbench.texts import corpora
from kvbench.texts.corpora import CORPORA, load_windows
from kvbench.texts.documents import Text
from kvbench.texts.tokens import Reader
from kvbench.texts.windows import oddities

pytestmark = pytest.mark.fast


class Letters:
    """One token a character, with a BOS in front if asked for; counts the characters that it is given."""

    def __init__(self, bos: int | None = None) -> None:
        self.bos_token_id = bos
        self.seen = 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        self.seen = max(self.seen, len(text))
        return {"input_ids": [*([] if self.bos_token_id is None else [self.bos_token_id]), *(ord(c) for c in text)]}


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVBENCH_DATA", raising=False)


def spec(name: str | Path, *, samples: int = 3, context: int = 6, continuation: int = 4, **corpus: Any) -> RunSpec:
    return RunSpec(corpus=CorpusSpec(str(name), **corpus), samples=samples, context=context, continuation=continuation)


def text_of(windows: corpora.Windows) -> list[str]:
    return ["".join(map(chr, row)) for row in windows.tokens.tolist()]


@pytest.fixture
def alphabet(tmp_path: Path) -> Path:
    file = tmp_path / "letters.txt"
    file.write_text("abcdefghijklmnopqrstuvwxyz0123456789")
    return file


def test_windows_are_consecutive_runs_from_the_start(alphabet: Path) -> None:
    windows = load_windows(spec(alphabet), Letters(), silent)
    assert text_of(windows) == ["abcdefghij", "klmnopqrst", "uvwxyz0123"]
    assert str(windows.tokens.dtype) == "torch.int64"
    info = windows.info
    assert (info["window"], info["stride"], info["samples"], info["bos"], info["join"]) == (10, 10, 3, False, "\n\n")
    assert (info["name"], info["source"]) == ("letters.txt", "letters.txt")
    assert info["content_hash"] == hashlib.sha256(alphabet.read_bytes()).hexdigest()


def test_a_stride_moves_the_starts(alphabet: Path) -> None:
    windows = load_windows(spec(alphabet, stride=3), Letters(), silent)
    assert text_of(windows) == ["abcdefghij", "defghijklm", "ghijklmnop"]
    assert windows.info["stride"] == 3


class Optional(Letters):
    """Puts its BOS in front unless asked not to, as real tokenizers do."""

    def __call__(self, text: str, *, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
        ids = super().__call__(text)["input_ids"]
        return {"input_ids": ids if add_special_tokens else ids[1:]}


class Never(Letters):
    """Has a BOS and puts it nowhere."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


HEADED = ["\x01abcdefghi", "\x01jklmnopqr", "\x01stuvwxyz0"]
BARE = ["abcdefghij", "klmnopqrst", "uvwxyz0123"]


@pytest.mark.parametrize(
    ("tokenizer", "bos", "rows"),
    [(Optional, "auto", HEADED), (Optional, "on", HEADED), (Optional, "off", BARE), (Letters, "auto", HEADED), (Letters, "off", BARE),
     (Never, "auto", BARE), (Never, "on", HEADED), (Never, "off", BARE)],
)  # fmt: skip
def test_every_window_begins_with_bos_or_none_does(alphabet: Path, tokenizer: type[Letters], bos: Any, rows: list[str]) -> None:
    windows = load_windows(spec(alphabet, bos=bos), tokenizer(bos=1), silent)
    assert text_of(windows) == rows
    assert windows.info["bos"] is (rows is HEADED)
    assert windows.info["stride"] == (9 if rows is HEADED else 10)


def test_a_stride_counts_the_texts_own_tokens(alphabet: Path) -> None:
    assert text_of(load_windows(spec(alphabet, stride=3), Optional(bos=1), silent)) == ["\x01abcdefghi", "\x01defghijkl", "\x01ghijklmno"]


def test_a_text_that_begins_with_bos_has_one(alphabet: Path) -> None:
    alphabet.write_text("\x01" + alphabet.read_text())
    for bos, rows in (("auto", HEADED), ("on", HEADED), ("off", BARE)):
        assert text_of(load_windows(spec(alphabet, bos=bos), Optional(bos=1), silent)) == rows


def test_bos_is_told_in_the_identity_of_the_tokens(alphabet: Path) -> None:
    one, other = (load_windows(spec(alphabet, bos=bos), Optional(bos=1), silent).info for bos in ("on", "off"))
    assert one["content_hash"] == other["content_hash"]
    assert one["tokens_hash"] != other["tokens_hash"]


def test_bos_that_cannot_be_is_refused(alphabet: Path) -> None:
    with pytest.raises(UsageError, match="no BOS"):
        load_windows(spec(alphabet, bos="on"), Letters(), silent)


def test_shorter_prompts_and_prompts_of_many_windows_begin_alike(alphabet: Path) -> None:
    windows = load_windows(spec(alphabet), Optional(bos=1), silent)
    shorter = windows.with_context(windows.tokens, 3, 6)
    assert ["".join(map(chr, row)) for row in shorter.tolist()] == ["\x01defghi", "\x01mnopqr", "\x01vwxyz0"]
    assert windows.with_context(windows.tokens, 6, 6).equal(windows.tokens)
    longer = windows.texts(2, 12)
    assert longer is not None
    assert ["".join(map(chr, row)) for row in longer.tolist()] == ["\x01abcdefghijk", "\x01lmnopqrstuv"]
    assert windows.texts(3, 12) is None


class Special(Letters):
    """``<`` and ``>`` are special tokens."""

    all_special_ids = (ord("<"), ord(">"))

    def convert_ids_to_tokens(self, token: int) -> str:
        return chr(token)


def test_what_is_no_text_is_counted_and_said(alphabet: Path) -> None:
    alphabet.write_text("ab<cd<e>\0f>" + "x" * 30)
    info = load_windows(spec(alphabet, samples=1), Special(), silent).info
    assert info["special_tokens"] == {"<": 2, ">": 1}
    assert info["nul_characters"] == 1
    first, second = oddities(info)
    assert "< × 2, > × 1" in first
    assert "1 NUL" in second
    assert not list(oddities(load_windows(spec(alphabet, samples=1), Letters(), silent).info | {"nul_characters": 0}))


def test_ids_without_an_embedding_are_refused(alphabet: Path) -> None:
    reader = Reader(Special(), rows=ord("t"))
    assert load_windows(spec(alphabet, samples=1), reader, silent).info["samples"] == 1
    with pytest.raises(CorpusError, match=r"token id 122 \('z'\), and the model has 116 embeddings"):
        load_windows(spec(alphabet), reader, silent)


def test_hashes_tell_text_and_tokens_apart(alphabet: Path) -> None:
    one, more = (load_windows(spec(alphabet, samples=n), Letters(), silent).info for n in (1, 2))
    assert one["content_hash"] == more["content_hash"]
    assert one["tokens_hash"] != more["tokens_hash"]
    assert one["tokens_hash"] == load_windows(spec(alphabet, samples=1), Letters(), silent).info["tokens_hash"]


@pytest.mark.parametrize(("context", "hint"), [(6, "use --samples 3"), (50, "smaller --context")])
def test_too_short_says_how_many_would_fit(alphabet: Path, context: int, hint: str) -> None:
    with pytest.raises(CorpusError, match="has 36 tokens and") as caught:
        load_windows(spec(alphabet, samples=4, context=context), Letters(), silent)
    assert hint in str(caught.value.hint)


def test_only_what_is_needed_is_tokenised_and_it_is_a_prefix_of_all(embedded_like: Any, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("".join(f"Word number {i * 7919 % 10007} comes   here.\n\n" for i in range(4000)))
    tokenizer = Counting(embedded_like)
    windows = load_windows(spec(file, samples=4, context=200, continuation=100), tokenizer, silent)
    everything = embedded_like(file.read_text())["input_ids"]
    assert windows.tokens.flatten().tolist() == everything[:1200]
    assert tokenizer.seen < len(file.read_text()) / 4


def test_a_word_that_the_cut_splits_is_in_no_window(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("abcdef " + "wxyz " * 2000)

    class Words:
        """One token a word, numbered by its length: a cut word is another token."""

        bos_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [len(word) for word in text.split()]}

    windows = load_windows(spec(tmp_path / "words.txt", samples=1, context=60, continuation=40), Words(), silent)
    assert windows.tokens.tolist() == [[6] + [4] * 99]


class Counting:
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.seen, self.bos_token_id = tokenizer, 0, tokenizer.bos_token_id

    def __call__(self, text: str, **options: Any) -> Any:
        self.seen = max(self.seen, len(text))
        return self.tokenizer(text, **options)


@pytest.fixture
def embedded_like() -> Any:
    """A byte-level BPE tokenizer with merges over words and white space."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["Word number 7919 comes   here.\n\n"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_jsonl_rows_are_joined(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "abc"}\n\n{"text": "def", "other": 1}\n')
    assert text_of(load_windows(spec(file, samples=1, context=4, continuation=4), Letters(), silent)) == ["abc\n\ndef"]


@pytest.mark.parametrize(
    ("line", "reason"), [('{"text": ', "line 2 is not JSON"), ('{"txt": "a"}', 'line 2 has no field "text"'), ("[1]", "line 2")]
)
def test_a_broken_row_is_named_by_line(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "abc"}\n' + line + "\n")
    with pytest.raises(CorpusError, match=reason) as caught:
        load_windows(spec(file), Letters(), silent)
    assert "rows.jsonl" in caught.value.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 ")
    with pytest.raises(CorpusError, match=r"not UTF-8 text \(byte 3\)"):
        load_windows(spec(tmp_path / "latin.txt"), Letters(), silent)
    with pytest.raises(CorpusError, match="cannot be read: No such file"):
        load_windows(spec(tmp_path / "none.jsonl"), Letters(), silent)


@pytest.mark.parametrize(("name", "text"), [("a.txt", "abcdefghij"), ("a.raw", "abcdefghij"), ("a.jsonl", '{"text": "abcdefghij"}')])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, text: str) -> None:
    found = []
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / name).write_text(text, encoding=encoding)
        found.append(load_windows(spec(tmp_path / name, samples=1), Letters(), silent))
    plain, marked = found
    assert text_of(marked) == text_of(plain) == ["abcdefghij"]
    assert marked.info["content_hash"] == plain.info["content_hash"]


def test_only_a_mark_at_the_head_is_none_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcd\ufeffefghij", encoding="utf-8-sig")
    assert text_of(load_windows(spec(tmp_path / "a.txt", samples=1), Letters(), silent)) == ["abcd\ufeffefghi"]


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean wikitext2") as caught:
        load_windows(spec("wikitext"), Letters(), silent)
    assert "kvbench list corpora" in str(caught.value.hint)
    assert all(corpus.title for corpus in CORPORA.values())


def test_no_tokenizer_no_text() -> None:
    with pytest.raises(CorpusError, match="no tokenizer"):
        load_windows(spec("language_reference"), None, silent)


def test_the_language_reference_ships_with_python() -> None:
    windows = load_windows(spec("language_reference"), Letters(), silent)
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[key] for key in sorted(topics))
    assert "".join(text_of(windows)) == text[:30]
    assert windows.info["content_hash"] == hashlib.sha256(text.encode()).hexdigest()


HUB_ROWS = ["", " = Title = \n", "", " First line .\n", " Second line .\n", ""]


@pytest.mark.parametrize(
    "mirrored", [" = Title = \r\n First line .\r\n Second line .\r\n", " \n = Title = \n \n First line .\n Second line .\n \n"]
)
def test_wikitext_is_the_same_text_from_hub_and_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirrored: str) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [{"text": row} for row in HUB_ROWS])
    hub = load_windows(spec("wikitext2"), Letters(), silent)
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2" / "wiki.test.raw").write_bytes(mirrored.encode())
    mirror = load_windows(spec("wikitext2", data_dir=str(tmp_path)), Letters(), silent)
    assert mirror.tokens.equal(hub.tokens)
    assert mirror.info["content_hash"] == hub.info["content_hash"]
    assert (hub.info["source"], mirror.info["source"]) == ("Salesforce/wikitext/wikitext-2-raw-v1/test", "wikitext2/wiki.test.raw")


def test_the_mirror_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4" / "validation.jsonl").write_text(json.dumps({"text": "m" * 60}))
    monkeypatch.setenv("KVBENCH_DATA", str(tmp_path))
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [{"text": "h" * 60}])
    assert text_of(load_windows(spec("c4"), Letters(), silent))[0] == "m" * 10
    assert text_of(load_windows(spec("pg19"), Letters(), silent))[0] == "h" * 10


def test_a_mirror_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CorpusError, match="--data-dir names"):
        load_windows(spec("wikitext2", data_dir=str(tmp_path / "none")), Letters(), silent)
    monkeypatch.setenv("KVBENCH_DATA", str(tmp_path / "none"))
    with pytest.raises(CorpusError, match="KVBENCH_DATA names"):
        load_windows(spec("wikitext2"), Letters(), silent)


def test_a_stream_is_read_no_further_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    def rows(*_: Any, **options: Any) -> Iterator[dict[str, str]]:
        nonlocal read
        assert options["streaming"] is True
        for number in range(10_000):
            read += 1
            yield {"text": f"document {number}"}

    monkeypatch.setattr("datasets.load_dataset", rows)
    windows = load_windows(spec("c4"), Letters(), silent)
    assert "".join(text_of(windows)) == "document 0\n\ndocument 1\n\ndocume"
    assert read < 1000


def test_no_network_says_where_to_put_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the hub\nand more lines")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(CorpusError, match=r"Couldn't reach the hub$") as caught:
        load_windows(spec("pg19"), Letters(), silent)
    assert "pg19/test.jsonl" in str(caught.value.hint)


def test_text_is_joined_as_it_is_read() -> None:
    text = Text("x", ["ab", "cd", "ef"], "--")
    assert text.at_least(3)
    assert text.digest() == hashlib.sha256(b"ab--cd--ef").hexdigest()
    assert not text.at_least(100)
    assert text.ended
    assert Text("x", [], "--").digest() == hashlib.sha256(b"").hexdigest()


@pytest.mark.data
def test_the_real_wikitext(data_dir: Path) -> None:
    windows = load_windows(spec("wikitext2", data_dir=str(data_dir), samples=2, context=12), Letters(), silent)
    assert text_of(windows)[0] == " = Robert Boulte"
    assert windows.info["content_hash"] == "bbf94c53a05abe9ee670d3b6343608095822c85e26de37c70b24fc571964574a"
