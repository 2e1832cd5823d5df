"""``keeper+storer``: grammar, what makes sense, and bytes that are those of both."""

from __future__ import annotations

import pytest
import torch
from making import method_of

from kvbench.errors import UnknownName, UsageError
from kvbench.methods.base import expand
from kvbench.spec import MethodSpec, RunSpec, split_list

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    "text", ["snapkv+int4", "snapkv:window=8,kernel=3+kivi:bits=2,group=16", "adakv:score_by=knorm+fp8", "adakv:score_by=snapkv,window=16"]
)
def test_a_label_is_what_was_written(text: str) -> None:
    spec = MethodSpec.parse(text)
    assert spec.label == text
    assert method_of(text).label == text  # type: ignore[attr-defined]
    assert (spec.store is not None) == ("+" in text)
    assert split_list(f"tova,{text},int8") == ["tova", text, "int8"]


def test_a_plus_between_numbers_joins_one_value() -> None:
    assert MethodSpec.parse("a:b=1+8").store is None
    assert MethodSpec.parse("a:b=1+8").options == {"b": "1+8"}


def test_both_sides_are_in_the_run_and_in_its_file() -> None:
    spec = RunSpec(methods=expand(["snapkv+kivi:bits=2"]))
    assert [m.label for m in spec.methods] == ["baseline", "random", "snapkv+kivi:bits=2"]
    assert RunSpec.from_plain(spec.to_plain()) == spec


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("kivi+snapkv", "kivi keeps every token", "write snapkv+kivi"),
        ("int8+int4", "int8 keeps every token", "for example snapkv+int8"),
        ("snapkv+tova", "tova cannot store what snapkv keeps", "kivi"),
        ("snapkv+baseline", "baseline cannot store", "int4"),
        ("h2o+int4", "decode=hold; it must be grow", "write h2o:decode=grow+int4"),
        ("snapkv+kivi+int4", "joins more than two", "snapkv+int4"),
        ("snapkv:window=0+int4", "window=0; it must be at least 1", ""),
        ("adakv:windw=16", "unknown parameter of method snapkv: 'windw'; did you mean window?", "kvbench list methods"),
        ("adakv:score_by=knorm,window=16", "unknown parameter of method knorm: 'window'", "kvbench list methods"),
        ("adakv:window=0", "window=0; it must be at least 1", ""),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_does(text: str, says: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        method_of(text)
    assert says in caught.value.message
    assert hint in (caught.value.hint or "")


def test_unknown_names_on_either_side() -> None:
    with pytest.raises(UnknownName, match=r"did you mean .*kivi"):
        expand(["snapkv+kiwi"])
    with pytest.raises(UnknownName, match=r"did you mean .*snapkv"):
        expand(["snapvk+kivi"])


def test_the_first_value_needs_no_name() -> None:
    assert method_of("knorm:0.75").compression_ratio == 0.75  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="gives 'compression_ratio' twice"):
        method_of("knorm:0.75,compression_ratio=0.5")


@pytest.mark.parametrize("text", ["snapkv+int4", "adakv+int4", "streaming_llm+kivi:bits=2,group=8,residual=16"])
def test_stored_bytes_are_those_of_the_kept_tokens_quantised(text: str) -> None:
    from kvbench.budgeting.expected import expected_bytes
    from kvbench.models.shape import Shape

    shape = Shape(2, 4, 2, 64, 256, 128, 4096)
    keeper, storer = text.split("+")
    both = expected_bytes(method_of(text), shape, 1024)  # type: ignore[arg-type]
    half = expected_bytes(method_of(storer), shape, 512)  # type: ignore[arg-type]
    assert both is not None
    assert half is not None
    lengths = 32 * 16 * shape.layers * shape.kv_heads  # counters: ragged heads have their own
    assert half <= both <= half + lengths
    assert both < expected_bytes(method_of(keeper), shape, 1024)  # type: ignore[arg-type,operator]


def test_a_composition_reads_what_the_storer_reads_of_the_kept_tokens() -> None:
    """``knorm+int4`` equals int4 applied to the tokens that knorm keeps, to the last bit."""
    from kvbench.caches.evicted import best_tokens
    from kvbench.caches.layer import LayerContext, prompt_view
    from kvbench.caches.observe import Observer

    context = LayerContext(0, 1, 4, 2, 16, torch.float64)
    keys, values = torch.randn(2, 1, 2, 40, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer, plain = method_of("knorm+int4:group=8").layer(context), method_of("int4:group=8").layer(context)  # type: ignore[attr-defined]
    view = prompt_view(keys, values, 0.25, Observer(layer.needs, 0.25), context)
    layer.adopt(view)
    plain.adopt(view.at(best_tokens(-keys.norm(dim=-1), 20)))
    fresh = torch.randn(3, 1, 4, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outs = [cache.extend(fresh[0], fresh[1][:, :2], fresh[2][:, :2]) for cache in (layer, plain)]
    assert torch.equal(*outs)
