"""Presets: what ships is complete, what is wrong is named by file, line and nearest key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvbench.errors import PresetError, UnknownName, UsageError
from kvbench.models.shape import check_supported, shape_of
from kvbench.spec import EvaluatorSpec, ModelSpec, RunSpec, presets

PARAMETERS = {  # as published, tied embeddings once
    "smollm2": 134_515_008,
    "qwen0.5b": 494_032_768,
    "qwen7b": 7_615_616_512,
    "qwen72b": 72_706_203_648,
    "llama8b": 8_030_261_248,
    "mistral7b": 7_248_023_552,
}


def build(preset: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    return presets.to_spec(preset, overrides)


def as_spec(arguments: dict[str, Any]) -> RunSpec:
    return RunSpec(**{**arguments, "methods": (), "evaluators": ()}).validate()


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


def test_the_default_comes_first_and_all_are_there() -> None:
    assert presets.names()[0] == presets.DEFAULT == "smollm2"
    assert set(presets.names()) == set(PARAMETERS)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_each_preset_is_a_whole_question(name: str) -> None:
    arguments = build(presets.read_preset(name))
    spec = as_spec(arguments)
    assert arguments["methods"] == ["all"]
    assert [EvaluatorSpec.parse(text).name for text in arguments["evaluators"]] == ["perplexity", "speed", "memory"]
    assert presets.describe(name)
    assert spec.model.config is not None
    check_supported(spec.model.config, spec.context + spec.continuation)
    assert RunSpec.from_plain(spec.to_plain()) == spec


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_each_config_builds_the_published_model(name: str) -> None:
    from transformers import AutoConfig

    from kvbench.models.unloaded import check_attention, outline_of

    plain = build(presets.read_preset(name))["model"].config
    config = AutoConfig.for_model(**plain)
    outline = outline_of(config)
    check_attention(outline)
    assert sum(p.numel() for p in outline.parameters()) == PARAMETERS[name]
    assert shape_of(config.to_dict()) == shape_of(plain)
    assert not getattr(config, "sliding_window", None)


def test_the_default_preset_counts_from_16_bit_caches() -> None:
    model = build(presets.read_preset("smollm2"))["model"]
    assert (model.id, model.dtype, model.cache_dtype) == ("embedded:smollm2", "float32", "bfloat16")


def test_flags_come_before_the_preset() -> None:
    preset = presets.read_preset("qwen7b")
    changed = build(preset, samples=3, methods="knorm,kivi:bits=2,group=32", model={"device": "cpu", "id": None}, corpus={"stride": 5})
    assert (changed["samples"], changed["context"]) == (3, preset["context"])
    assert changed["methods"] == ["knorm", "kivi:bits=2,group=32"]
    assert (changed["model"].device, changed["model"].dtype, changed["model"].id) == ("cpu", "bfloat16", "Qwen/Qwen2.5-7B")
    assert (changed["corpus"].name, changed["corpus"].stride) == ("wikitext2", 5)
    assert build(preset, samples=None)["samples"] == preset["samples"]


def test_another_model_leaves_how_it_is_run_and_nothing_of_the_presets_own() -> None:
    """Number formats and device are the preset's, flags over them; config, revision and spreading were its model's."""
    preset = presets.read_preset("qwen72b")
    assert preset["model"]["config"]
    assert preset["model"]["device_map"]
    kept = ModelSpec("some/other", dtype="float16", cache_dtype=preset["model"].get("cache_dtype", "auto"))
    assert build(preset, model={"id": "some/other", "dtype": "float16"})["model"] == kept
    small = presets.read_preset("smollm2")
    assert build(small, model={"id": "some/other"})["model"] == ModelSpec("some/other", "float32", "bfloat16")
    assert build(small, model={"id": "some/other", "cache_dtype": "float32"})["model"] == ModelSpec("some/other", "float32", "float32")
    assert build(preset, model={"id": "Qwen/Qwen2.5-72B"})["model"].config is not None


def test_none_in_a_config_is_null() -> None:
    assert build(presets.read_preset("mistral7b"))["model"].config["sliding_window"] is None


def test_a_file_of_ones_own(written: Any) -> None:
    preset = presets.read_preset(written('methods = ["knorm", "kivi:bits=2"]\nsamples = 2\n[model]\nid = "a/b"\n'))
    arguments = build(preset)
    assert (arguments["preset"], arguments["methods"], arguments["model"].id) == ("mine", ["knorm", "kivi:bits=2"], "a/b")
    assert "evaluators" not in arguments


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampels = 3\n", r"mine\.toml:1 has an unknown key 'sampels'; did you mean samples"),
        ('samples = 3\n[model]\n\n"dytpe" = "float32"\n', r"mine\.toml:4 has an unknown key 'dytpe' in \[model\]; did you mean dtype"),
        ("[corpsu]\nname = 1\n", r"mine\.toml:1 has an unknown key 'corpsu'; did you mean corpus"),
        ('context = 1\nsamples = "six"\n', r"mine\.toml:2: 'samples': Expected `int`, got `str`"),
        ('[model]\nid = "a"\ndtype = "float23"\n', r"mine\.toml:3: 'dtype' in \[model\]: Invalid enum value 'float23'"),
        ("[corpus]\nstride = 1.5\n", r"mine\.toml:2: 'stride' in \[corpus\]"),
        ("methods = 3\n", r"mine\.toml:1: 'methods' must be text"),
        ('model = "a/b"\n', r"mine\.toml:1: 'model' must be a table"),
        ("[model.config]\nhidden_size = 3\n", r"no model_type"),
        ("samples = \n", r"mine\.toml:1 is not TOML"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(written: Any, text: str, message: str) -> None:
    with pytest.raises(PresetError, match=message):
        presets.read_preset(written(text))


def test_a_byte_order_mark_is_no_toml(written: Any) -> None:
    assert presets.read_preset(written("\ufeffsamples = 2\n"))["samples"] == 2


def test_presets_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean qwen7b"):
        presets.read_preset("qwen7")
    with pytest.raises(UsageError, match="there is no preset file"):
        presets.read_preset(str(tmp_path / "none.toml"))


def test_an_installed_package_brings_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "kvbench" / "_presets"
    inside.mkdir(parents=True)
    (inside / "only.toml").write_text('description = "one"\n')
    monkeypatch.setattr(presets, "__file__", str(tmp_path / "kvbench" / "spec" / "presets.py"))
    assert presets.names() == ["only"]
    assert presets.describe("only") == "one"
