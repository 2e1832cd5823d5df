"""Parameters and their ranges, names and their order."""

from __future__ import annotations

import pytest
from making import method_of

from kvbench.errors import UnknownName, UsageError
from kvbench.methods.base import METHODS, expand, must_divide
from kvbench.models.shape import Shape
from kvbench.spec import CONTROLS

pytestmark = pytest.mark.fast
SHAPE = Shape(layers=2, heads=4, kv_heads=2, head_dim=64, hidden_size=256, vocab_size=128, max_positions=2048)


NUMBERS = [
    (name, key)
    for name in METHODS.names()
    for key, default, _ in METHODS.load(name).parameters()
    if isinstance(default, (int, float)) and not isinstance(default, bool) and (name, key) != ("kvzap", "threshold")  # a logarithm
]


@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_no_number_may_be_anything(name: str, key: str) -> None:
    with pytest.raises(UsageError, match=rf"method '{name}:{key}=-7.*': .*{key}=-7(\.0)?; it ") as caught:
        method_of(f"{name}:{key}=-7")
    assert caught.value.hint == "kvbench list methods"


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
    method = method_of(text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are compared below)
        method.check(Shape(2, 4, 2, head_dim, 4 * head_dim, 128, 2048))
    assert str(caught.value) == says


@pytest.mark.parametrize("name", [name for name in METHODS.names() if name != "kvpress"])  # it has no default: a press must be named
def test_every_default_and_variant_fits_an_ordinary_head(name: str) -> None:
    for text in (name, *METHODS.load(name).variants):
        method = method_of(text)
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
        method_of(text)
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
        method_of(text)


def test_the_runs_ratio_is_the_default_and_the_label_stays_as_written() -> None:
    assert method_of("knorm", compression_ratio=0.75).compression_ratio == 0.75
    assert method_of("knorm:compression_ratio=0.25", compression_ratio=0.75).compression_ratio == 0.25
    assert method_of("knorm", compression_ratio=0.75).label == "knorm"


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
    method = method_of("hybrid:retain=0.3,pyramid=0.6")
    shares = [method.retained(layer, 7) for layer in range(7)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(0.48)
    assert shares[-1] == pytest.approx(0.12)
    assert sum(shares) / 7 == pytest.approx(0.3)
    assert method.retained(0, 1) == pytest.approx(0.3)
