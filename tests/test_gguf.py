"""GGUF files: folder and file of the same weights are one model; whatever a file holds is used or refused by name."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from kvbench.errors import KvbenchError, ModelError, ResourceError, UnsupportedModel
from kvbench.models import shape, sources, store
from kvbench.models.gguf import gguf_config
from kvbench.models.gguf.convert import convert
from kvbench.models.gguf.header import decimal
from kvbench.models.gguf.header_reading import read_header
from kvbench.models.gguf.rope import llama3_rule, wavelengths
from kvbench.models.weights import silent
from kvbench.spec import ModelSpec
from tests.gguf_files import EXPERTS, PLAIN, Writer, llama3_divisors, tiny, tokens, write_gguf

pytestmark = pytest.mark.fast

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 128,
}  # fmt: skip
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied head": ("llama", {"tie_word_embeddings": True}),
    "llama, heads wider than hidden / heads": ("llama", {"head_dim": 16}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, llama3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, linear": ("llama", {"rope_parameters": {**PLAIN, "rope_type": "linear", "factor": 4.0}}),
    "qwen2": ("qwen2", {}),
    "qwen2, yarn with all it may have": (
        "qwen2",
        {"rope_parameters": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5}},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "mistral, window": ("mistral", {"sliding_window": 16}),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3, part of a head turns": ("phi3", {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}),
    "phi3, longrope and window": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 128, "sliding_window": 16}),
    "gemma": ("gemma", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", {"tie_word_embeddings": True, "query_pre_attn_scalar": 8, "sliding_window": 16}),
    "gemma3": (
        "gemma3_text",
        {
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 8,
            "sliding_window": 16,
            "num_hidden_layers": 7,
            "rope_parameters": GEMMA3_ROPE,
        },
    ),
    "granite": (
        "granite",
        {"attention_multiplier": 0.3, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    ),
    "olmo2": ("olmo2", {}),
    "starcoder2": ("starcoder2", {"tie_word_embeddings": True, "sliding_window": None}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2 experts": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 40, "norm_topk_prob": False}),
    "qwen3 experts": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True}),
}


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny("llama")


@pytest.fixture
def llama_file(llama: Any, tmp_path: Path) -> Path:
    return write_gguf(llama, tmp_path / "tiny.gguf")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def changed(model: Any, file: Path, change: Callable[[Writer], None]) -> Path:
    return write_gguf(model, file, change=change)


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.arange(48)[None] * 7 % 300).logits


@pytest.mark.parametrize("case", CASES)
def test_folder_and_gguf_of_the_same_weights_are_one_model(case: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model_type, changes = CASES[case]
    model = tiny(model_type, **changes)
    convert(write_gguf(model, tmp_path / "a.gguf"), tmp_path / "a")
    ours, report = AutoModelForCausalLM.from_pretrained(tmp_path / "a", output_loading_info=True)
    report = report if isinstance(report, dict) else vars(report)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(logits(ours), logits(model))


def test_the_old_key_of_linear_scaling_is_read(llama: Any, tmp_path: Path) -> None:
    file = changed(llama, tmp_path / "a.gguf", key("llama.rope.scale_linear", 4.0))
    assert gguf_config(file)["rope_parameters"] == {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}


def test_every_kind_of_rope_makes_another_model() -> None:
    """What the test above compares would differ if a kind of RoPE were lost on the way."""
    import torch

    plain = logits(tiny("llama"))
    for case in ("llama, yarn", "llama, linear"):
        assert not torch.allclose(logits(tiny(*CASES[case][:1], **CASES[case][1])), plain, atol=1e-3), case
    assert not torch.allclose(logits(tiny("llama", head_dim=32)), logits(tiny("llama", **CASES["llama, llama3"][1])), atol=1e-3)


@pytest.mark.parametrize(
    ("low", "high", "original", "theta", "width"), [(1, 4, 8192, 500000.0, 128), (2, 7, 100, 1e4, 32), (1, 4, 64, 1e4, 8)]
)
def test_llama3_parameters_are_found_from_its_divisors(low: float, high: float, original: int, theta: float, width: int) -> None:
    rope = {**LLAMA3, "low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": original, "rope_theta": theta}
    divisors = [decimal(float(x)) for x in llama3_divisors(rope, width)]
    found = llama3_rule(divisors, wavelengths(theta, width))
    assert found is not None
    again = llama3_divisors({"rope_theta": theta, **found}, width)
    assert again.tolist() == pytest.approx(divisors, rel=2e-6)
    if low == 1:
        assert {**found, "rope_theta": theta} == {**rope, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_divisors_of_no_known_rule_are_taken_as_they_are(llama: Any, tmp_path: Path) -> None:
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    divisors = [1.0, 3.0, 2.0, 5.0]
    file = changed(llama, tmp_path / "a.gguf", lambda w: w.add_tensor("rope_freqs.weight", np.array(divisors, np.float32)))
    convert(file, tmp_path / "a")
    turned = AutoModelForCausalLM.from_pretrained(tmp_path / "a").model.rotary_emb.inv_freq
    assert torch.allclose(turned, llama.model.rotary_emb.inv_freq / torch.tensor(divisors), rtol=1e-6)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_numbers_of_every_kind_equal_what_transformers_decodes(kind: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    file = write_gguf(tiny("llama", hidden_size=64, intermediate_size=64), tmp_path / "a.gguf", kind=gguf.GGMLQuantizationType[kind])
    convert(file, tmp_path / "a")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert gguf_config(file)["dtype"] == {"F16": "float16", "BF16": "bfloat16"}.get(kind, "float32")


def key(name: str, value: Any) -> Callable[[Writer], None]:
    """Adds one key."""
    kinds = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array"}
    return lambda writer: getattr(writer, kinds[type(value)])(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("llama.attn_logit_softcapping", 50.0), ("llama.final_logit_softcapping", 30.0), ("llama.logit_scale", 0.5),
        ("llama.residual_scale", 0.22), ("llama.embedding_scale", 12.0), ("llama.attention.scale", 0.5), ("llama.attention.causal", False),
        ("llama.attention.max_alibi_bias", 8.0), ("llama.attention.clamp_kqv", 8.0), ("llama.expert_used_count", 2),
        ("llama.rope.scaling.type", "strange"), ("llama.rope.scaling.attn_factor", 1.2), ("llama.rope.scaling.yarn_log_multiplier", 0.1),
        ("llama.rope.dimension_sections", [1, 2, 1, 0]), ("llama.attention.sliding_window_pattern", 6), ("llama.something_new", 1),
        ("qwen2.context_length", 7), ("strange.key", 1), ("tokenizer.ggml.strange", True), ("tokenizer.ggml.precompiled_charsmap", [1, 2]),
        ("general.type", "adapter"), ("split.count", 3),
    ],
)  # fmt: skip
def test_a_key_that_is_not_understood_is_refused_by_name(llama: Any, tmp_path: Path, name: str, value: Any) -> None:
    file = changed(llama, tmp_path / "a.gguf", key(name, value))
    with pytest.raises(ModelError) as caught:
        convert(file, tmp_path / "a")
    assert name in str(caught.value) or "parts" in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / "a").exists()


def test_keys_without_effect_are_taken(llama: Any, tmp_path: Path) -> None:
    def harmless(writer: Writer) -> None:
        for name, value in {
            "general.license": "mit", "general.tags": ["a", "b"], "quantize.imatrix.file": "x", "llama.attention.causal": True,
            "llama.rope.scaling.finetuned": False, "llama.logit_scale": 1.0, "llama.expert_count": 0,
            "llama.expert_used_count": 0, "llama.vocab_size": 300,
            "llama.rope.scaling.type": "none", "tokenizer.ggml.fim_pre_token_id": 2, "tokenizer.chat_template.tool": "x", "split.count": 1,
        }.items():  # fmt: skip
            key(name, value)(writer)

    assert gguf_config(changed(llama, tmp_path / "a.gguf", harmless)) == gguf_config(write_gguf(llama, tmp_path / "b.gguf"))


def test_every_token_that_ends_an_answer_is_kept(llama: Any, tmp_path: Path) -> None:
    assert gguf_config(write_gguf(llama, tmp_path / "a.gguf"))["eos_token_id"] == 2
    assert gguf_config(changed(llama, tmp_path / "b.gguf", key("tokenizer.ggml.eot_token_id", 7)))["eos_token_id"] == [2, 7]


def test_a_tensor_that_is_not_understood_is_refused_by_name(llama: Any, tmp_path: Path) -> None:
    import numpy as np

    for name in ("blk.0.attn_q.scale", "blk.9.attn_q.weight", "output.bias", "v.patch_embd.weight", "blk.0.attn_sub_norm.weight"):
        file = changed(llama, tmp_path / "a.gguf", lambda w, name=name: w.add_tensor(name, np.ones(32, np.float32)))  # type: ignore[misc]
        with pytest.raises(UnsupportedModel, match=rf"tensor '{name}'"):
            gguf_config(file)


def test_lost_biases_and_tensors_of_another_shape_are_named(tmp_path: Path) -> None:
    model = tiny("qwen2")
    del model.model.layers[1].self_attn.k_proj.bias
    model.model.layers[1].self_attn.k_proj.bias = None
    with pytest.raises(ModelError, match=r"'blk\.1\.attn_k\.bias' is missing"):
        gguf_config(write_gguf(model, tmp_path / "a.gguf"))
    model = tiny("llama")
    model.config.intermediate_size = 40
    with pytest.raises(ModelError, match=r"ffn_.*' is \[.*48.*\] and should be \[.*40.*\]"):
        gguf_config(write_gguf(model, tmp_path / "b.gguf"))


def test_a_header_alone_says_what_is_refused(tmp_path: Path, llama_file: Path) -> None:
    """Soft caps and layers that turn differently are refused by kvbench's own rules from the header's config."""
    model_type, changes = CASES["gemma3"]
    with pytest.raises(UnsupportedModel, match="rotate keys differently"):
        sources.find_source(ModelSpec(str(write_gguf(tiny(model_type, **changes), tmp_path / "a.gguf"))), silent, weights=False)
    assert shape.shape_of(gguf_config(llama_file)).kv_heads == 2


def test_reading_a_header_imports_no_torch(llama_file: Path) -> None:
    import subprocess

    code = f"import sys; from kvbench.models.gguf import gguf_config; from pathlib import Path; gguf_config(Path({str(llama_file)!r}));"
    asked = subprocess.run(
        [sys.executable, "-c", code + "print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"], capture_output=True, text=True
    )
    assert asked.stdout.strip() == "set()", asked.stderr


def damaged(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """What a disk, a network and an enemy make of a file."""
    huge = struct.pack("<Q", 1 << 62)
    yield "another magic", b"GGML" + whole[4:]
    yield "empty", b""
    yield "magic alone", whole[:4]
    yield "version 1", whole[:4] + struct.pack("<I", 1) + whole[8:]
    yield "version 99", whole[:4] + struct.pack("<I", 99) + whole[8:]
    yield "big-endian", whole[:4] + struct.pack(">I", 3) + whole[8:]
    yield "many tensors", whole[:8] + huge + whole[16:]
    yield "many keys", whole[:16] + huge + whole[24:]
    yield "a long key", whole[:24] + huge + whole[32:]
    yield "many keys of zeros", whole[:16] + struct.pack("<Q", 4_000_000) + bytes(60_000_000)
    at = whole.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
    yield "a long array", whole[:at] + huge + whole[at + 8 :]
    yield "nested arrays", whole[: at - 4] + struct.pack("<I", 9) + whole[at:]
    yield "a kind of value that is none", whole[: at - 8] + struct.pack("<I", 77) + whole[at - 4 :]
    for part in (0.01, 0.1, 0.5, 0.999):
        yield f"cut at {part}", whole[: int(len(whole) * part)]
    place = whole.index(b"token_embd.weight") + len("token_embd.weight")
    yield "many dimensions", whole[:place] + struct.pack("<I", 1 << 30) + whole[place + 4 :]
    yield "a huge dimension", whole[: place + 4] + huge + whole[place + 12 :]
    yield "no such type", whole[: place + 20] + struct.pack("<I", 4242) + whole[place + 24 :]
    yield "far away", whole[: place + 24] + struct.pack("<Q", 1 << 60) + whole[place + 32 :]


def test_a_damaged_file_is_refused_at_once(llama_file: Path, tmp_path: Path) -> None:
    import time

    file = tmp_path / "bad.gguf"
    for name, content in damaged(llama_file.read_bytes()):
        file.write_bytes(content)
        begun = time.process_time()
        with pytest.raises(ModelError) as caught:
            gguf_config(file)
        assert "bad.gguf" in str(caught.value), name
        assert caught.value.hint, name
        assert time.process_time() - begun < 2, name


def test_a_bit_that_flips_in_a_header_never_ends_otherwise(llama_file: Path, tmp_path: Path) -> None:
    import random

    whole, rng = llama_file.read_bytes(), random.Random(0)
    end = min(tensor.offset for tensor in read_header(llama_file).tensors.values())
    for number in range(100):
        content, file = bytearray(whole), tmp_path / f"{number}.gguf"  # a file of its own: one that did not change is not read again
        for _ in range(rng.choice((1, 1, 4))):
            content[rng.randrange(end)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        file.write_bytes(content)
        try:
            config = gguf_config(file)
        except KvbenchError:
            continue
        assert config["hidden_size"] == 32


def test_a_file_is_converted_once_and_again_when_it_changes(llama: Any, llama_file: Path, cache: Path) -> None:
    from kvbench.models.weights import hash_weights, sha256_of

    stages: list[str] = []
    spec = ModelSpec(str(llama_file))
    first = sources.find_source(spec, lambda stage, *_: stages.append(stage))
    assert first.folder.parent == cache / "models"
    assert any(stage.startswith("converting tiny.gguf to 0.0 GB") for stage in stages)
    assert hash_weights(first.weights) == sha256_of(llama_file)
    before = (first.folder / "model.safetensors").stat().st_mtime_ns
    again = sources.find_source(spec, lambda stage, *_: pytest.fail(stage))
    assert (again.folder / "model.safetensors").stat().st_mtime_ns == before
    write_gguf(llama, llama_file, change=key("general.license", "other"))
    assert sources.find_source(spec, silent).folder != first.folder


def test_a_converted_folder_that_was_damaged_is_made_again(llama_file: Path, cache: Path) -> None:
    spec = ModelSpec(str(llama_file))
    folder = sources.find_source(spec, silent).folder
    (folder / "model.safetensors").write_bytes(b"half")
    assert sources.find_source(spec, silent).folder == folder
    assert (folder / "model.safetensors").stat().st_size > 1000
    assert {path.name for path in folder.iterdir()} >= {"config.json", "tokenizer.json", store.MARKER}
    assert [path for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_full_disk_is_said_before_and_while_writing(llama_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import shutil
    from types import SimpleNamespace

    from kvbench.models.gguf import convert as conversion

    def full(*_: Any) -> Iterator[Any]:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "blocks_of", full)
        with pytest.raises(ResourceError, match="No space left") as caught:
            sources.find_source(ModelSpec(str(llama_file)), silent)
        assert "KVBENCH_CACHE" in str(caught.value.hint)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(ResourceError, match=r"need 0\.0 GB in the cache folder"):
        sources.find_source(ModelSpec(str(llama_file)), silent)
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]


def test_a_cache_folder_that_cannot_be_written(llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in the way").write_text("")
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "in the way"))
    with pytest.raises(ResourceError, match="cannot be written"):
        sources.find_source(ModelSpec(str(llama_file)), silent)


def test_the_whole_way_from_file_to_model(llama: Any, llama_file: Path, cache: Path) -> None:
    import torch

    from kvbench.models.loading import load_model

    loaded = load_model(ModelSpec(str(llama_file), device="cpu", dtype="float32"), seed=0, progress=silent)
    assert torch.equal(logits(loaded.model), logits(llama))
    assert loaded.tokenizer is not None
    assert loaded.tokenizer("bc a")["input_ids"] == [tokens().index("bc"), tokens().index("Ġa")]


def bos_of(file: Path) -> tuple[list[int], list[int]]:
    """Ids of a text by the tokenizer that is read from the file and by the one that was saved and loaded."""
    source = sources.Source(file.parent, gguf=file)
    folder = file.with_suffix("")
    convert(file, folder)
    return source.load_tokenizer()("bc").input_ids, sources.Source(folder, gguf=file).load_tokenizer()("bc").input_ids


def test_a_bos_that_the_file_asks_for_survives(llama: Any, tmp_path: Path) -> None:
    word = tokens().index("bc")
    file = changed(llama, tmp_path / "on.gguf", lambda w: w.kv_data[0]["tokenizer.ggml.add_bos_token"].__setattr__("value", True))
    assert bos_of(file) == ([1, word], [1, word])
    assert bos_of(write_gguf(llama, tmp_path / "off.gguf")) == ([word], [word])


def sentencepiece(writer: Writer) -> None:
    """A SentencePiece vocabulary in place of the byte-level one."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁ab", "ab"]
    pieces += [f"[PAD{i}]" for i in range(len(pieces), 300)]
    values = writer.kv_data[0]
    for name in ("model", "pre", "tokens", "token_type", "merges", "add_bos_token"):
        values.pop(f"tokenizer.ggml.{name}")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(i) for i in range(len(pieces))])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259))


def test_a_sentencepiece_vocabulary_is_read(llama: Any, tmp_path: Path) -> None:
    file = changed(llama, tmp_path / "a.gguf", sentencepiece)
    read = sources.Source(file.parent, gguf=file).load_tokenizer()
    assert read.convert_ids_to_tokens(read("ab a").input_ids) == ["<s>", "▁ab", "▁a"]  # llama.cpp adds BOS unless told otherwise
    assert read.convert_ids_to_tokens(read("é", add_special_tokens=False).input_ids) == ["▁", "<0xC3>", "<0xA9>"]
    assert read.decode(read("ab a é").input_ids, skip_special_tokens=True) == "ab a é"


def test_a_run_is_refused_from_the_header_before_it_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "cache"))
    model_type, changes = CASES["gemma3"]
    file = write_gguf(tiny(model_type, **changes), tmp_path / "a.gguf")
    command = [sys.executable, "-X", "importtime", "-m", "kvbench", "run", "--model", str(file), "--methods", "snapkv"]
    asked = subprocess.run([*command, "--output-dir", str(tmp_path / "runs")], capture_output=True, text=True, cwd=tmp_path)
    assert asked.returncode == 3
    assert "rotate keys differently" in asked.stderr
    assert " torch\n" not in asked.stderr
    assert not (tmp_path / "runs").exists()


def test_a_tokenizer_that_is_not_understood_is_refused_before_anything_is_hashed(llama: Any, tmp_path: Path) -> None:
    file = changed(llama, tmp_path / "a.gguf", key("tokenizer.ggml.strange", 1))
    for weights in (False, True):
        with pytest.raises(ModelError, match=r"tokenizer\.ggml\.strange"):
            sources.find_source(ModelSpec(str(file)), lambda stage, *_: pytest.fail(stage), weights=weights)
