"""A dry run: bytes for whatever is on this machine, refused as the run would be, at once and without computing anything."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from kvbench.cli import main
from kvbench.errors import ModelError, UnsupportedModel
from kvbench.models.ahead import COMMON, FAMILIES, config_ahead, is_told
from kvbench.models.shape import shape_of
from kvbench.spec import ModelSpec

pytestmark = pytest.mark.fast
QWEN = {
    "model_type": "qwen2", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256,
    "vocab_size": 151936, "max_position_embeddings": 4096, "torch_dtype": "float16",
}  # fmt: skip

EMPTY = struct.pack("<Q", 2) + b"{}"
"""A safetensors file without tensors."""


def put(folder: Path, config: dict[str, Any], *files: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(orjson.dumps(config))
    for name in files:
        (folder / name).write_bytes(EMPTY if name.endswith(".safetensors") else b"")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return put(tmp_path / "m", QWEN, "model.safetensors", "tokenizer.json")


def dry(*flags: str | Path) -> int:
    return main(["run", "--dry-run", "--evals", "perplexity", *map(str, flags)])


def test_a_folder_has_bytes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = {name for name in ("torch", "transformers") if name in sys.modules}
    assert dry("--model", folder, "--methods", "snapkv,snapkv:decode=hold,int4", "--context", 512) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    stored = 2 * 2 * (2 * 64 * 512 * 2 + 16) / 1024  # keys and values of two layers: two heads of 64 in 16 bit, and their lengths
    assert rows["baseline"][-3:] == [f"{stored:.1f}", "KiB", "1.00×"]
    assert rows["snapkv"][-1] == "2.00×"
    assert rows["model"][-3:] == ["float16", "·", "auto"]
    assert {name for name in ("torch", "transformers") if name in sys.modules} == loaded


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--methods", "int4", "--context", "5000"), "beyond this model's 4096 positions"),
        (("--methods", "int4:group=48"), "group=48 does not divide the head size"),
        (("--methods", "int4", "--corpus", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_what_the_run_would_refuse_is_refused(folder: Path, flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry("--model", folder, *flags) != 0
    shown = capsys.readouterr()
    assert said in shown.err
    assert not shown.out


@pytest.mark.parametrize(
    ("config", "files", "said"),
    [
        (QWEN, ["tokenizer.json"], "holds no model.safetensors"),
        (QWEN, ["tokenizer.json", "pytorch_model.bin"], "as a pickle"),
        (QWEN, ["model.safetensors"], "holds no tokenizer"),
        (QWEN | {"model_type": "gemma2"}, ["tokenizer.json", "model.safetensors"], "soft-cap"),
        (QWEN | {"model_type": "bloom"}, ["tokenizer.json", "model.safetensors"], "no rotary"),
        (QWEN | {"use_sliding_window": True, "sliding_window": 100}, ["tokenizer.json", "model.safetensors"], "sliding layers see 100"),
    ],
)
def test_what_a_folder_lacks_or_is_is_refused(
    tmp_path: Path, config: dict[str, Any], files: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry("--model", put(tmp_path / "m", config, *files), "--methods", "int4") == 3
    assert said in capsys.readouterr().err


HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


@pytest.mark.parametrize(
    "content", [b"", b"not it", EMPTY + b"x", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", len(HEADER)) + HEADER + b"1234"]
)
def test_weights_that_are_not_whole_are_refused(folder: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert dry("--model", folder, "--methods", "int4") == 3
    assert "model.safetensors' " in capsys.readouterr().err


def test_a_tokenizer_with_code_of_its_own_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(folder, QWEN | {"model_type": "llama"})
    code = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps(code))
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    assert dry("--model", folder, "--methods", "int4") == 3
    assert "Python code of its own" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "said"), [("t.txt", "is not UTF-8"), ("t.jsonl", "line 1 is not JSON")])
def test_a_text_that_cannot_be_read_is_refused(folder: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.parent / name).write_bytes('{"text": "hello"}'.encode("utf-16"))
    assert dry("--model", folder, "--methods", "int4", "--corpus", folder.parent / name) == 4
    shown = capsys.readouterr()
    assert said in shown.err
    assert not shown.out


def test_random_weights_need_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path / "m", QWEN)
    assert main(["run", "--dry-run", "--model", str(folder), "--random-weights", "--evals", "memory", "--methods", "int8"]) == 0
    assert "1.9" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["gone", "gone.gguf"])
def test_what_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError):
        config_ahead(ModelSpec(id=str(tmp_path / name)))


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3))
    with pytest.raises(ModelError):
        config_ahead(ModelSpec(id=str(tmp_path / "cut.gguf")))
    folder = put(tmp_path / "m", QWEN, "model.safetensors", "tokenizer.json")
    (folder / "config.json").write_bytes(b"{")
    with pytest.raises(ModelError, match="cannot be read"):
        config_ahead(ModelSpec(id=str(folder)))


def test_a_family_that_is_not_known_is_looked_at_by_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code may show what no config does."""
    with pytest.raises(ModelError, match="cannot be loaded"):
        config_ahead(ModelSpec(id=str(put(folder, QWEN | {"model_type": "unheard_of"}))))
    with pytest.raises(UnsupportedModel, match="AttentionInterface"):
        config_ahead(ModelSpec(id=str(put(folder, QWEN | {"model_type": "falcon", "num_ln_in_parallel_attn": 1}))))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_that_is_read_as_it_stands_says_what_transformers_would(
    family: str, tmp_path: Path, tiny_config: Callable[[str], Any]
) -> None:
    """A file with no more than the keys that are asked for, beside transformers' reading of it."""
    from transformers import AutoConfig

    from kvbench.models.unloaded import check_attention, outline_of

    sizes = {key: QWEN.get(key, 64) for key in (*COMMON, *FAMILIES[family])} | {"model_type": family}
    if "sliding_window" in sizes:
        sizes["sliding_window"] = None
    told = put(tmp_path / family, sizes | {"vocab_size": 128, "pad_token_id": 0})
    config = AutoConfig.from_pretrained(told)
    assert is_told(sizes)
    assert shape_of(sizes | {"vocab_size": 128}) == shape_of(config.to_dict())
    check_attention(outline_of(config))
    assert not any(is_told({k: v for k, v in sizes.items() if k != left_out}) for left_out in sizes)
