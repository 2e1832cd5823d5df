"""Parameters and their ranges, names and their order."""

from __future__ import annotations

from typing import Any

import pytest

from kvbench.errors import UnknownName, UsageError
from kvbench.methods.base import METHODS, expand, must_divide, resolve
from kvbench.models.shape import Shape
from kvbench.spec import CONTROLS, MethodSpec, RunSpec

pytestmark = pytest.mark.fast
SHAPE = Shape(layers=2, heads=4, kv_heads=2, head_dim=64, hidden_size=256, vocab_size=128, max_positions=2048)


def made(text: str, **run: Any) -> Any:
    return resolve(MethodSpec.parse(text), RunSpec(**run))


NUMBERS = [
    (name, key)
    for name in METHODS.names()
    for key, default, _ in METHODS.load(name).parameters()
    if isinstance(default, (int, float)) and not isinstance(default, bool) and (name, key) != ("kvzap", "threshold")  # a logarithm
]


@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_no_number_may_be_anything(name: str, key: str) -> None:
    with pytest.raises(UsageError, match=rf"method '{name}:{key}=-7.*': .*{key}=-7(\.0)?; it ") as caught:
        made(f"{name}:{key}=-7")
    assert caught.value.hint == "kvbench list methods"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("random:compression_ratio=1", "compression_ratio=1.0; it is the fraction removed and lies in [0, 1)"),
        ("knorm:compression_ratio=-0.1", "compression_ratio=-0.1; it is the fraction removed and lies in [0, 1)"),
        ("streaming_llm:n_sink=-1", "n_sink=-1; it must be at least 0"),
        ("snapkv:window=0", "window=0; it must be at least 1"),
        ("snapkv:kernel=4", "kernel=4; it must be odd, for example 5"),
        ("snapkv:kernel=0", "kernel=0; it must be odd, for example 1"),
        ("snapkv:kernel=-3", "kernel=-3; it must be odd, for example 1"),
        ("expected_attention:n_future_positions=0", "n_future_positions=0; it must be at least 1"),
        ("int8:k_bits=7", "k_bits=7; it must be 2, 3, 4, 8 or 16, for example 8"),
        ("int4:v_bits=5", "v_bits=5; it must be 2, 3, 4, 8 or 16, for example 4"),
        ("int4:group=-1", "group=-1; it must be 0 or more"),
        ("kivi:bits=1", "bits=1; it must be 2, 3, 4 or 8, for example 2"),
        ("kivi:v_bits=12", "v_bits=12; it must be 2, 3, 4, 8 or 16, for example 8"),
        ("fp8:k_bits=4", "k_bits=4; it must be 8 or 16, for example 8"),
        ("fp8:symmetric=false", "symmetric=false; it must be true"),
        ("int4:k_axis=tokens", "k_axis=tokens; it must be token or channel"),
        ("int4:v_axis=channel", "residual=0; it must be a multiple of group=32, for example 32"),
        ("int8:v_axis=channel,residual=32", "group=0; it must be a number of tokens where an axis is channel, for example 32"),
        ("snapkv:decode=keep", "decode=keep; it must be grow or hold"),
        ("tova:interval=0", "interval=0; it must be at least 1"),
        ("h2o:recent=1.5", "recent=1.5; it is a share of the kept tokens and lies in [0, 1]"),
        ("adakv:alpha_safeguard=-0.1", "alpha_safeguard=-0.1; it is a share of a head's budget and lies in [0, 1]"),
        ("adakv:score_by=kivi", "score_by=kivi; it must be an eviction, for example snapkv"),
        ("adakv:score_by=snapvk", "score_by=snapvk; it must be an eviction: unknown method 'snapvk'; did you mean snapkv"),
        ("kivi:group=0", "group=0; it must be a number of tokens where an axis is channel, for example 32"),
        ("kivi:residual=100", "residual=100; it must be a multiple of group=32, for example 96"),
        ("kivi:residual=0", "residual=0; it must be a multiple of group=32, for example 32"),
        ("v_lowrank:rank=-1", "rank=-1; it must be 0 or more"),
        ("v_lowrank:basis=svd", "basis=svd; it must be pca or random"),
        ("v_lowrank:bits=2", "bits=2; it must be 8, 4 or 0 (dense)"),
        ("hybrid:retain=0", "retain=0.0; it is the fraction kept and lies in (0, 1]"),
        ("hybrid:guard=1.5", "guard=1.5; it is a fraction of the kept tokens and lies in [0, 1]"),
        ("hybrid:pyramid=1", "pyramid=1.0; it lies in [0, 1)"),
        ("hybrid:retain=0.8,pyramid=0.5", "pyramid=0.5 makes the bottom layer keep more than all; the largest is 0.25"),
        ("hybrid_8x:kernel=2", "kernel=2; it must be odd, for example 3"),
        ("hybrid_12x:window=0", "window=0; it must be at least 1"),
    ],
)
def test_a_value_out_of_range_is_answered_with_the_nearest(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(text)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("text", "head_dim", "says"),
    [
        ("int4:group=48", 64, "group=48 does not divide the head size, 64; the nearest that does is 32"),
        ("kivi:group=24,residual=48", 64, "group=24 does not divide the head size, 64; the nearest that does is 16"),
        ("hybrid_5x:group=30", 64, "group=30 does not divide the head size, 64; the nearest that does is 32"),
        ("v_lowrank:rank=65", 64, "rank=65 is above the head size; the largest is 64"),
        ("v_lowrank:rank=9,bits=4", 64, "rank=9 is odd, and two 4-bit codes fill a byte; the nearest even rank is 8"),
        (
            "kivi:bits=3,group=20,residual=20",
            100,
            "k_bits=3: codes of a head of 100 do not fill whole bytes; the nearest that do have 2 bits",
        ),
        ("int4:group=0,v_bits=2", 50, "v_bits=2: codes of a head of 50 do not fill whole bytes; the nearest that do have 4 bits"),
    ],
)
def test_a_value_that_does_not_fit_the_model_is_answered_with_the_nearest(text: str, head_dim: int, says: str) -> None:
    method = made(text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are compared below)
        method.check(Shape(2, 4, 2, head_dim, 4 * head_dim, 128, 2048))
    assert str(caught.value) == says


@pytest.mark.parametrize("name", [name for name in METHODS.names() if name != "kvpress"])  # it has no default: a press must be named
def test_every_default_and_variant_fits_an_ordinary_head(name: str) -> None:
    for text in (name, *METHODS.load(name).variants):
        method = made(text)
        method.check(SHAPE)
        assert method.label == text


@pytest.mark.parametrize(("value", "total", "nearest"), [(3, 64, "2"), (50, 64, "64"), (0, 64, "1"), (7, 15, "5")])
def test_the_nearest_divisor(value: int, total: int, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"; the nearest that does is {nearest}$"):
        must_divide("group", value, total, "axis")


@pytest.mark.parametrize(
    ("text", "near"),
    [("snapvk", "snapkv"), ("kiwi", "kivi"), ("tovaa", "tova"), ("snapkv:windw=3", "window"), ("knorm:ratio=0.5", "compression_ratio")],
)
def test_a_name_that_is_not_there_is_answered_with_the_nearest(text: str, near: str) -> None:
    with pytest.raises(UnknownName, match=f"did you mean .*{near}") as caught:
        made(text)
    assert near in caught.value.nearest
    assert caught.value.hint == "kvbench list methods"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kivi:bits=two", "bits=two is not int"),
        ("knorm:compression_ratio=half", "is not float"),
        ("int8:symmetric=1", "symmetric=1 is not bool"),
    ],
)
def test_a_value_of_another_kind_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        made(text)


def test_the_runs_ratio_is_the_default_and_the_label_stays_as_written() -> None:
    assert made("knorm", compression_ratio=0.75).compression_ratio == 0.75
    assert made("knorm:compression_ratio=0.25", compression_ratio=0.75).compression_ratio == 0.25
    assert made("knorm", compression_ratio=0.75).label == "knorm"


@pytest.mark.parametrize(
    "asked", [["kivi:bits=2,tova"], ["kivi:bits=2", "tova"], ["kivi:bits=2,random,tova,baseline"], ["kivi:bits=2,tova,kivi:bits=2"]]
)
def test_the_controls_come_first_and_once(asked: list[str]) -> None:
    assert [spec.label for spec in expand(asked)] == [*CONTROLS, "kivi:bits=2", "tova"]


def test_all_is_every_variant() -> None:
    labels = [spec.label for spec in expand(["all"])]
    wanted = [v for cls in map(METHODS.load, METHODS.names()) if cls.in_all for v in cls.variants or (cls.name,)]
    assert labels == [*CONTROLS, *(label for label in wanted if label not in CONTROLS)]
    assert {"kivi:bits=4", "kivi:bits=3", "kivi:bits=2", "v_lowrank", "hybrid_5x", "hybrid_8x", "hybrid_12x"} <= set(labels)
    assert {label.split(":")[0] for label in labels} == set(METHODS.names()) - {"hybrid", "kvpress"}


def test_expanding_refuses_a_name_at_once() -> None:
    with pytest.raises(UnknownName, match="did you mean knorm"):
        expand(["tova,knrom"])


@pytest.mark.parametrize(
    ("tokens", "ratio", "kept"),
    [(1000, 0.9, 100), (1000, 0.7, 300), (512, 0.5, 256), (10, 0.99, 1), (1, 0.5, 1), (100, 0.0, 100), (7, 0.5, 3), (3000, 1 - 0.1, 300)],
)
def test_kept_tokens_have_no_dust(tokens: int, ratio: float, kept: int) -> None:
    from kvbench.caches.reckon import kept_count

    assert kept_count(tokens, ratio) == kept


def test_kept_tokens_are_those_of_exact_arithmetic() -> None:
    from fractions import Fraction

    from kvbench.caches.reckon import kept_count

    for percent in range(100):
        for tokens in (*range(1, 300), 512, 1000, 4096, 32768):
            exact = max(1, int(tokens * (1 - Fraction(percent, 100))))
            assert kept_count(tokens, percent / 100) == exact, (tokens, percent)


def test_a_pyramid_keeps_the_mean() -> None:
    method = made("hybrid:retain=0.3,pyramid=0.6")
    shares = [method.retained(layer, 7) for layer in range(7)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(0.48)
    assert shares[-1] == pytest.approx(0.12)
    assert sum(shares) / 7 == pytest.approx(0.3)
    assert method.retained(0, 1) == pytest.approx(0.3)
