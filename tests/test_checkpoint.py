"""What of a folder is loaded: exactly the files that are hashed, safetensors alone, and no code that came with it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from kvbench.errors import ModelError
from kvbench.models import weights
from kvbench.models.checkpoint import CONVERT, INDEX, WHOLE, config_hash, weight_files
from kvbench.models.loading import load_model
from kvbench.models.sources import Source, find_source, local_source
from kvbench.spec import ModelSpec

pytestmark = pytest.mark.fast
EVIL = (
    "open({0!r}, 'w').write('ran')\nfrom transformers import PreTrainedConfig\n\n\nclass Own(PreTrainedConfig):\n    model_type = 'own'\n"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of files whose content does not matter here."""
    made = tmp_path / "model"
    made.mkdir()
    put(made, "config.json", {"model_type": "llama"})
    return made


def put(folder: Path, name: str, content: Any = b"x") -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else orjson.dumps(content))
    return file


def sharded(folder: Path, *names: str) -> None:
    put(folder, INDEX, {"metadata": {}, "weight_map": {f"w{i}": name for i, name in enumerate(names)}})


def test_a_stray_file_is_no_part_of_the_hash(folder: Path) -> None:
    put(folder, WHOLE, b"weights")
    put(folder, "adapter.safetensors", b"stray")
    put(folder, "model.fp16.safetensors", b"stray")
    sharded(folder, "adapter.safetensors")  # transformers takes the whole file where both are there
    assert weight_files(folder) == [folder / WHOLE]
    assert weights.hash_weights(folder) == hashlib.sha256(b"weights").hexdigest()


def test_shards_are_those_that_the_index_names(folder: Path) -> None:
    names = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    for name in names:
        put(folder, name, name.encode())
    put(folder, "model-3-of-3.safetensors", b"of another checkpoint")
    sharded(folder, names[1], names[0], names[1])
    assert weight_files(folder) == [folder / name for name in names]
    whole = weights.hash_weights(folder)
    put(folder, names[1], b"changed")
    assert weights.hash_weights(folder) != whole


@pytest.mark.parametrize(
    ("files", "index", "said"),
    [
        (["model-1-of-2.safetensors"], ["model-1-of-2.safetensors", "model-2-of-2.safetensors"], "lacks 1 of the 2 files.*model-2-of-2"),
        ([], ["../elsewhere.safetensors"], "does not say which files"),
        ([], ["/etc/passwd"], "does not say which files"),
        ([], ["pytorch_model.bin"], "does not say which files"),
        ([], [], "does not say which files"),
        (["pytorch_model.bin"], None, r"as a pickle \(pytorch_model.bin\)"),
        (["pytorch_model-00001-of-00002.bin", "adapter.safetensors"], None, r"as a pickle \(pytorch_model-00001"),
        (["consolidated.00.pth"], None, r"as a pickle \(consolidated.00.pth\)"),
        (["model.fp16.safetensors"], None, "holds model.fp16.safetensors, and neither"),
        (["training_args.bin"], None, "holds no model.safetensors"),
        ([WHOLE, "adapter_config.json"], None, "holds an adapter"),
    ],
)
def test_what_would_not_be_loaded_as_it_is_hashed_is_refused(folder: Path, files: list[str], index: list[str] | None, said: str) -> None:
    for name in files:
        put(folder, name, b"{}")
    if index is not None:
        sharded(folder, *index)
    with pytest.raises(ModelError, match=said) as caught:
        find_source(ModelSpec(id=str(folder)), weights.silent)
    assert caught.value.hint
    assert ("save_pretrained" in caught.value.hint) == ("pickle" in said or "adapter" in said)


def test_weights_that_a_config_names_are_refused(folder: Path) -> None:
    put(folder, WHOLE)
    put(folder, "other.safetensors")
    put(folder, "config.json", {"model_type": "llama", "transformers_weights": "other.safetensors"})
    with pytest.raises(ModelError, match="transformers_weights"):
        weight_files(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"weight_map": 3}', b'{"weight_map": {"a": 3}}'])
def test_a_broken_index_is_refused(folder: Path, content: bytes) -> None:
    put(folder, INDEX, content)
    with pytest.raises(ModelError):
        weight_files(folder)


def test_what_is_hashed_is_what_is_loaded(tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    """A checkpoint in shards, with the whole of another model's weights beside it under other names."""
    import torch

    model = tiny_model("qwen2", torch.float32)
    model.save_pretrained(tmp_path / "m", max_shard_size="40KB")
    model.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / WHOLE).rename(tmp_path / "m" / "stray.safetensors")
    files = weight_files(tmp_path / "m")
    assert len(files) > 1
    assert "stray.safetensors" not in [file.name for file in files]
    loaded, _ = Source(tmp_path / "m").load_model(dtype=torch.float32, device_map=None)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.layers.0.self_attn.q_proj.extra_bias": (4,)}, "has 1 weights that its config has no place for, first .*extra_bias"),
        ({"model.layers.1.mlp.up_proj.weight": (3, 3)}, r"has 1 weights of another shape, first .*up_proj.weight \[3, 3\]"),
        ({"model.layers.1.mlp.up_proj.weight": None}, "lacks 1 weights, first .*up_proj.weight"),
    ],
)
def test_weights_of_another_model_than_the_configs_are_refused(
    tmp_path: Path, tiny_model: Callable[..., Any], change: dict[str, Any], said: str
) -> None:
    """A bias that nothing reads would be hashed, and its model never measured."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "m"
    tiny_model("llama", torch.float32).save_pretrained(folder)
    held = load_file(folder / WHOLE)
    for name, shape in change.items():
        held.pop(name, None)
        held |= {name: torch.ones(shape)} if shape else {}
    save_file(held, folder / WHOLE, {"format": "pt"})
    with pytest.raises(ModelError, match=said):
        load_model(ModelSpec(id=str(folder), device="cpu"), seed=0, progress=weights.silent)


def test_a_pickle_is_converted_as_the_hint_says(tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    """The command that the refusal gives, but for the tokenizer that this folder lacks."""
    import torch
    from transformers import AutoModelForCausalLM

    assert "AutoModelForCausalLM as M" in CONVERT
    model = tiny_model("qwen2", torch.float32)
    model.config.save_pretrained(tmp_path / "m")
    torch.save(model.state_dict(), tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle"):
        weight_files(tmp_path / "m")
    AutoModelForCausalLM.from_pretrained(tmp_path / "m").save_pretrained(tmp_path / "m-safetensors")
    assert weight_files(tmp_path / "m-safetensors") == [tmp_path / "m-safetensors" / WHOLE]


def test_a_file_put_back_with_its_old_time_is_read_again(folder: Path) -> None:
    file = put(folder, WHOLE, b"one")
    before, times = weights.hash_weights(folder), file.stat()
    put(folder, WHOLE, b"two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights.hash_weights(folder) != before


def test_no_name_is_taken_for_a_hash(folder: Path) -> None:
    liar = put(folder, "0" * 64, b"content")
    (folder / WHOLE).symlink_to(liar)
    assert weights.hash_weights(folder) == hashlib.sha256(b"content").hexdigest()


def test_a_config_has_a_hash_of_its_own(folder: Path) -> None:
    first = config_hash(folder)
    put(folder, "config.json", {"transformers_version": "6", "model_type": "llama"})
    assert config_hash(folder) == first
    put(folder, "config.json", {"model_type": "llama", "rope_theta": 1e6})
    assert config_hash(folder) != first


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_code_that_a_checkpoint_brings_is_refused_without_a_question(folder: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question at the prompt"))
    ran = folder / "ran"
    put(folder, "own.py", EVIL.format(str(ran)).encode())
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    put(folder, part, {"model_type": "own", "tokenizer_class": "Own", "auto_map": own})
    source = local_source(ModelSpec(id=str(folder)))
    assert source is not None
    with pytest.raises(ModelError, match=rf"{part}' asks for Python code of its own \(auto_map\)"):
        source.load_config() if part == "config.json" else source.load_tokenizer()
    assert not ran.exists()
