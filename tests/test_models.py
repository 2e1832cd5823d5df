"""Loading models: what is refused, what is recorded, and that random weights need nothing but a config."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvbench.errors import ModelError, ResourceError, UnsupportedModel
from kvbench.models import loading as models
from kvbench.models import sources, weights
from kvbench.models.shape import Shape, cache_bytes_per_token, check_supported, shape_of
from kvbench.spec import ModelSpec

LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "vocab_size": 32}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def saved(tmp_path: Path, tiny_model: Callable[..., Any]) -> Path:
    """A tiny float32 model in a folder, with no tokenizer."""
    import torch

    folder = tmp_path / "tiny"
    tiny_model("qwen2", torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture
def with_tokenizer(saved: Path) -> Path:
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(kinds.WordLevel({f"w{i}": i for i in range(128)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(saved)
    return saved


def load(name: str | Path, **fields: Any) -> models.LoadedModel:
    return models.load_model(ModelSpec(id=str(name), **{"device": "cpu", **fields}), seed=0, progress=weights.silent)


def load_random(config: dict[str, Any], seed: int = 0, **fields: Any) -> models.LoadedModel:
    spec = ModelSpec(id="nobody/nothing", config=config, random_weights=True, **{"device": "cpu", **fields})
    return models.load_model(spec, seed=seed, progress=weights.silent)


def test_importing_is_cheap() -> None:
    names = [
        "models.loading",
        "texts.corpora",
        "spec.presets",
        "models.telemetry",
        "models.embedded",
        "models.shape",
        "models.weights",
        "instruments.environment",
    ]
    code = (
        ";".join(f"import kvbench.{name}" for name in names)
        + ";import sys;print([m for m in ('torch','transformers','numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_shape_reads_grouped_heads_and_defaults() -> None:
    assert shape_of(LLAMA) == Shape(layers=2, heads=4, kv_heads=4, head_dim=16, hidden_size=64, vocab_size=32, max_positions=0)
    grouped = shape_of({**LLAMA, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 99})
    assert (grouped.kv_heads, grouped.head_dim, grouped.max_positions) == (2, 32, 99)
    assert cache_bytes_per_token(grouped, 2) == 2 * 2 * 2 * 32 * 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"model_type": "deepseek_v3"}, "latent attention"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"layers_block_type": ["mamba", "attention"]}, "mamba"),
        ({"model_type": "gemma2"}, "soft-cap"),
        ({"attn_logit_softcapping": 50.0}, "soft-cap"),
        ({"logits_scaling": 8.0}, "scales the logits"),
        ({"model_type": "glm4"}, "interleaved"),
        ({"model_type": "cohere"}, "interleaved"),
        ({"model_type": "gptj"}, "interleaved"),
        ({"model_type": "gpt2"}, "no rotary"),
        ({"model_type": "gpt_oss"}, "sinks"),
        ({"no_rope_layers": [1, 0]}, "no rotary"),
        ({"num_kv_shared_layers": 1}, "share one cache"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rotate keys differently"),
        ({"num_key_value_heads": [2, 4]}, "layers differ"),
        ({"hidden_size": None}, "no hidden_size"),
    ],
)
def test_what_would_be_measured_wrongly_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        check_supported({**LLAMA, **changes}, 64)
    assert str({**LLAMA, **changes}["model_type"]) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "config",
    [
        {**LLAMA, "sliding_window": 8},
        {**LLAMA, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
        {**LLAMA, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8},
        {**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 8},
        {**LLAMA, "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 8}},
    ],
)
def test_windows_and_changing_frequencies_are_refused_only_beyond_their_length(config: dict[str, Any]) -> None:
    check_supported(config, 8)
    with pytest.raises(UnsupportedModel, match="reads 9"):
        check_supported(config, 9)


@pytest.mark.parametrize(
    "config",
    [
        {**LLAMA, "model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False},
        {**LLAMA, "model_type": "qwen2", "sliding_window": 8},
        {**LLAMA, "sliding_window": None},
        {**LLAMA, "sliding_window": 8, "layer_types": ["full_attention"] * 2},
        {**LLAMA, "model_type": "gemma2", "attn_logit_softcapping": None},
    ],
)
def test_a_window_that_no_layer_uses_is_no_reason(config: dict[str, Any]) -> None:
    check_supported(config, 1000)


@pytest.mark.fast
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "phi", "phi3", "gemma", "starcoder2"])
def test_standard_families_pass_and_load(name: str) -> None:
    sizes = {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}
    loaded = load_random({**LLAMA, "model_type": name, **sizes})
    assert (loaded.shape.kv_heads, loaded.tokenizer, loaded.info["random_weights"]) == (2, None, True)


@pytest.mark.fast
@pytest.mark.parametrize(("name", "reason"), [("bloom", "no rotary"), ("falcon", "cannot be replaced"), ("helium", "interleaved")])
def test_other_families_are_refused_whatever_their_config_says(name: str, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        load_random({**LLAMA, "model_type": name})


@pytest.mark.fast
def test_code_is_checked_where_the_config_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvbench.models import shape

    monkeypatch.setattr(shape, "INTERLEAVED_ROPE", set())
    monkeypatch.setattr(shape, "OTHER_ATTENTION", {})
    sizes = {"num_key_value_heads": 2, "intermediate_size": 64, "pad_token_id": 0}
    with pytest.raises(UnsupportedModel, match="does not turn halves"):
        load_random({**LLAMA, "model_type": "helium", "head_dim": 16, **sizes})
    with pytest.raises(UnsupportedModel, match=r"sinks|rotary"):
        load_random({**LLAMA, "model_type": "gpt_oss", "head_dim": 16, "layer_types": ["full_attention"] * 2, **sizes})


@pytest.mark.fast
def test_a_folder_loads_as_it_was_saved(with_tokenizer: Path, tiny_model: Callable[..., Any]) -> None:
    import torch

    loaded, original = load(with_tokenizer, cache_dtype="bfloat16"), tiny_model("qwen2", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), original.parameters(), strict=True))
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert (loaded.dtype, loaded.cache_dtype, loaded.device) == (torch.float32, torch.bfloat16, torch.device("cpu"))
    info = loaded.info
    assert info["weights_hash"] == hashlib.sha256((with_tokenizer / "model.safetensors").read_bytes()).hexdigest()
    assert (info["layers"], info["heads"], info["kv_heads"], info["head_dim"], info["vocab_size"]) == (4, 4, 2, 16, 128)
    assert info["weights_bytes"] == 4 * info["parameters"] == 4 * sum(p.numel() for p in original.parameters())
    assert {"id", "revision", "hidden_size", "dtype", "cache_dtype", "device", "device_name", "random_weights"} <= set(info)
    assert info["tokenizer_hash"] == weights.hash_tokenizer(models.load_tokenizer(ModelSpec(id=str(with_tokenizer))))


def test_weights_are_hashed_again_only_when_a_file_changes(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = weights.sha256_of
    monkeypatch.setattr(weights, "sha256_of", lambda file, *rest: read.append(file.name) or real(file, *rest))
    first = weights.hash_weights(saved)
    assert weights.hash_weights(saved) == first
    assert read == ["model.safetensors"]
    with (saved / "model.safetensors").open("ab") as file:
        file.write(b" ")
    assert weights.hash_weights(saved) != first
    assert len(read) == 2


@pytest.mark.fast
def test_a_checkpoint_that_lacks_weights_is_refused(with_tokenizer: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = with_tokenizer / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("model.layers.2.self_attn.k_proj.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights.*layers\.2\.self_attn\.k_proj"):
        load(with_tokenizer)


@pytest.mark.fast
def test_a_half_written_checkpoint_is_one_clear_line(with_tokenizer: Path) -> None:
    file = with_tokenizer / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load(with_tokenizer)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/no/such/folder", "no folder"),
        ("./no-such", "no folder"),
        ("no-such.gguf", "no file"),
        ("a b", "no hub id"),
        ("a/b/c", "no hub id"),
    ],
)
def test_what_is_not_there_is_named(name: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        load(name)
    assert name in caught.value.message
    assert caught.value.hint


def test_empty_folders_broken_gguf_and_missing_weights(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(tmp_path / "empty")
    (tmp_path / "broken.gguf").write_bytes(b"not it")
    with pytest.raises(ModelError, match="no GGUF file"):
        load(tmp_path / "broken.gguf")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00")
    with pytest.raises(ModelError, match="ends within its header"):
        load(tmp_path / "cut.gguf")
    (saved / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no model.safetensors"):
        load(saved)


@pytest.mark.parametrize(
    ("error", "reason", "hint"),
    [
        ("GatedRepoError", "gated", "hf auth login"),
        ("RepositoryNotFoundError", "no model", "hf auth login"),
        ("RevisionNotFoundError", "no revision 'v9'", "revision"),
        ("LocalEntryNotFoundError", "hub cannot be reached", "connect"),
        ("HfHubHTTPError", "hub cannot be reached", "connect"),
    ],
)
def test_what_the_hub_says_becomes_one_line(error: str, reason: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    kind = getattr(errors, error)

    def refuse(*_: Any, **__: Any) -> str:
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=reason) as caught:
        load("owner/name", revision="v9")
    assert hint in str(caught.value.hint)


def test_a_hub_model_is_refused_before_its_weights_are_fetched(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def give(*_: Any, allow_patterns: list[str], **__: Any) -> str:
        asked.append(allow_patterns)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)
    config = saved / "config.json"
    config.write_text(config.read_text().replace('"qwen2"', '"gpt2"'))
    with pytest.raises(UnsupportedModel):
        load("owner/name")
    assert len(asked) == 1
    assert "*.safetensors" not in asked[0]


def test_download_bars_report_bytes_and_draw_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, int, int]] = []
    bar = sources._reporting_bar(lambda *step: seen.append(step), "fetching x")
    files, size = bar(total=3, unit="it", name="files"), bar(total=0, unit="B", name="bytes", initial=0)
    size.total = 100
    files.update(1)
    size.update(60)
    size.close()
    files.close()
    assert seen == [("fetching x", 60, 100)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.fast
def test_random_weights_come_from_config_and_seed_alone(tiny_config: Callable[[str], dict[str, Any]], family: str) -> None:
    import torch

    state = torch.random.get_rng_state()
    one, same, other = (load_random(tiny_config(family), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    first = [m.model.model.layers[0].self_attn.k_proj.weight for m in (one, same, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert one.info["weights_hash"] == same.info["weights_hash"] != other.info["weights_hash"]
    assert load_random(tiny_config(family), dtype="bfloat16").model.dtype is torch.bfloat16


@pytest.mark.fast
def test_random_weights_spread_over_devices_equal_a_model_built_in_one_place(tiny_config: Callable[[str], dict[str, Any]]) -> None:
    import torch
    from transformers import AutoConfig

    from kvbench.models.random_weights import spread_random

    config = AutoConfig.for_model(**{**tiny_config("llama"), "tie_word_embeddings": True, "initializer_range": 0.02})
    spread, whole = spread_random(config, torch.float32, {"cpu": 10**9}), load_random(config.to_dict()).model
    assert torch.equal(spread.model.rotary_emb.inv_freq, whole.model.rotary_emb.inv_freq)
    assert spread.lm_head.weight is spread.model.embed_tokens.weight
    for (name, a), b in zip(spread.named_parameters(), whole.parameters(), strict=True):
        assert a.std().item() == pytest.approx(b.std().item(), abs=2e-3), name
    assert torch.isfinite(spread(torch.arange(9)[None]).logits).all()


def test_devices_that_are_not_there() -> None:
    import torch

    count = torch.cuda.device_count()
    with pytest.raises(ResourceError, match=f"torch sees {count} GPUs"):
        models.resolve_device(f"cuda:{count}")
    with pytest.raises(ResourceError, match="no device"):
        models.resolve_device("toaster")
    assert models.resolve_device("cpu") == torch.device("cpu")
    assert models.resolve_device("auto").type == ("cuda" if count else "cpu")


def test_too_little_memory_is_said_before_loading(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(ResourceError, match=r"need .* GiB and 0\.0 GiB are free"):
        load(saved)


@pytest.mark.model
def test_the_embedded_model_is_what_it_should_be(embedded_model: models.LoadedModel) -> None:
    info = embedded_model.info
    assert (info["layers"], info["heads"], info["kv_heads"], info["head_dim"]) == (30, 9, 3, 64)
    assert info["weights_hash"] == "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
    assert embedded_model.tokenizer("Hello world, don't 123\n\n x")["input_ids"] == [19556, 905, 28, 1326, 982, 216, 33, 34, 35, 1116, 1792]


@pytest.mark.model
@pytest.mark.data
def test_the_embedded_model_reads_wikitext(embedded_model: models.LoadedModel, data_dir: Path) -> None:
    """The first 384 of 2,048 tokens that it reads at a perplexity of 20.21."""
    import torch

    from kvbench.spec import CorpusSpec, RunSpec
    from kvbench.texts.corpora import load_windows

    spec = RunSpec(corpus=CorpusSpec("wikitext2", str(data_dir)), samples=1, context=256, continuation=128)
    tokens = load_windows(spec, embedded_model.tokenizer, weights.silent).tokens
    with torch.no_grad():
        scores = embedded_model.model(tokens).logits[:, :-1].log_softmax(-1)
    nll = -scores.gather(2, tokens[:, 1:, None]).mean().item()
    assert 2.718281828**nll == pytest.approx(28.11, rel=1e-3)
