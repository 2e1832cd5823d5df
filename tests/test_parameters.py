"""What no parameter may be: each value is refused by name, with what it must be; a class says it where the parameter is declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from kvbench.errors import UsageError
from kvbench.evaluators.registered import EVALUATORS
from kvbench.methods.base import Eviction, param, resolve
from kvbench.spec import EvaluatorSpec, MethodSpec, RunSpec
from kvbench.spec.parameters import build


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("random:compression_ratio=1", "compression_ratio=1.0; it lies in [0, 1)"),
        ("knorm:compression_ratio=-0.1", "compression_ratio=-0.1; it lies in [0, 1)"),
        ("streaming_llm:n_sink=-1", "n_sink=-1; it must be at least 0"),
        ("snapkv:window=0", "window=0; it must be at least 1"),
        ("snapkv:kernel=4", "kernel=4; it must be odd, for example 5"),
        ("snapkv:kernel=0", "kernel=0; it must be odd, for example 1"),
        ("snapkv:kernel=-3", "kernel=-3; it must be odd, for example 1"),
        ("expected_attention:n_future_positions=0", "n_future_positions=0; it must be at least 1"),
        ("int8:k_bits=7", "k_bits=7; it must be 2, 3, 4, 8 or 16, for example 8"),
        ("int4:v_bits=5", "v_bits=5; it must be 2, 3, 4, 8 or 16, for example 4"),
        ("int4:group=-1", "group=-1; it must be at least 0"),
        ("kivi:bits=1", "bits=1; it must be 2, 3, 4 or 8, for example 2"),
        ("kivi:v_bits=12", "v_bits=12; it must be 2, 3, 4, 8 or 16, for example 8"),
        ("fp8:k_bits=4", "k_bits=4; it must be 8 or 16, for example 8"),
        ("fp8:symmetric=false", "symmetric=false; it must be true"),
        ("int4:k_axis=tokens", "k_axis=tokens; it must be token or channel"),
        ("int4:v_axis=channel", "residual=0; it must be a multiple of group=32, for example 32"),
        ("int8:v_axis=channel,residual=32", "group=0; it must be a number of tokens where an axis is channel, for example 32"),
        ("snapkv:decode=keep", "decode=keep; it must be grow or hold"),
        ("tova:interval=0", "interval=0; it must be at least 1"),
        ("h2o:recent=1.5", "recent=1.5; it lies in [0, 1]"),
        ("adakv:alpha_safeguard=-0.1", "alpha_safeguard=-0.1; it lies in [0, 1]"),
        ("adakv:score_by=kivi", "score_by=kivi; it must be an eviction, for example snapkv"),
        ("adakv:score_by=snapvk", "score_by=snapvk; it must be an eviction: unknown method 'snapvk'; did you mean snapkv"),
        ("kivi:group=0", "group=0; it must be a number of tokens where an axis is channel, for example 32"),
        ("kivi:residual=100", "residual=100; it must be a multiple of group=32, for example 96"),
        ("kivi:residual=0", "residual=0; it must be a multiple of group=32, for example 32"),
        ("v_lowrank:rank=-1", "rank=-1; it must be at least 0"),
        ("v_lowrank:basis=svd", "basis=svd; it must be pca or random"),
        ("v_lowrank:bits=2", "bits=2; it must be 8, 4 or 0, for example 4"),
        ("hybrid:retain=0", "retain=0.0; it lies in (0, 1]"),
        ("hybrid:guard=1.5", "guard=1.5; it lies in [0, 1]"),
        ("hybrid:pyramid=1", "pyramid=1.0; it lies in [0, 1)"),
        ("hybrid:retain=0.8,pyramid=0.5", "pyramid=0.5 makes the bottom layer keep more than all; the largest is 0.25"),
        ("hybrid_8x:kernel=2", "kernel=2; it must be odd, for example 3"),
        ("hybrid_12x:window=0", "window=0; it must be at least 1"),
        ("v_lowrank:rank=4,energy=0.9", "rank=4 and energy=0.9 both set the rank; give one of them"),
        ("orthogonal:v_rank=4,energy=0.9", "v_rank=4 and energy=0.9 both set the rank"),
        ("v_lowrank:energy=0", "energy=0.0; it lies in (0, 1]"),
        ("palu:energy=1.2", "energy=1.2; it lies in (0, 1]"),
        ("v_lowrank:energy=-0.5", "energy=-0.5; it lies in"),
        ("orthogonal:basis=random,energy=0.9", "energy=0.9 is read off eigenvalues, which basis=random has none of; give rank instead"),
        ("palu:basis=svd", "basis=svd; it must be pca or random"),
        ("palu:bits=5", "bits=5; it must be 8, 4, 3, 2 or 0, for example 4"),
        ("palu:group_heads=-1", "group_heads=-1; it must be at least 0"),
        ("orthogonal:bits=3", "bits=3; it must be 8, 4 or 0, for example 4"),
        ("orthogonal:k_rank=-2", "k_rank=-2; it must be at least 0"),
        ("asymkv:compression_ratio=1", "compression_ratio=1.0; it lies in [0, 1)"),
        ("asymkv:window=0", "window=0; it must be at least 1"),
        ("asymkv:n_sink=-1", "n_sink=-1; it must be at least 0"),
        ("asymkv:weights=mean", "weights=mean; it must be fisher, attention or cardinality"),
        ("lagkv:n_sink=-1", "n_sink=-1; it must be at least 0"),
        ("lagkv:lag_size=0", "lag_size=0; it must be at least 1"),
        ("pyramidkv:beta=0", "beta=0; it must be at least 1"),
        ("pyramidkv:window=0", "window=0; it must be at least 1"),
        ("pyramidkv:kernel=6", "kernel=6; it must be odd, for example 7"),
        ("keydiff:compression_ratio=1", "compression_ratio=1.0; it lies in [0, 1)"),
        ("kvzap:window=-1", "window=-1; it must be at least 0"),
        ("kvzap:surrogate=cubic", "surrogate=cubic; it must be linear, mlp, or a hub id or folder, for example nvidia/KVzap-mlp-Qwen3-8B"),
        ("kvzap:treshold=-5", "did you mean threshold?"),
        ("turboquant:bits=5", "bits=5; it must be 1, 2, 3 or 4, for example 4"),
        ("turboquant:bits=0", "bits=0; it must be 1, 2, 3 or 4, for example 1"),
        ("turboquant:v_bits=8", "v_bits=8; it must be 1, 2, 3 or 4, for example 4"),
        ("turboquant:recent=-1", "recent=-1; it must be at least 0"),
        ("minicache:start=1.0", "start=1.0; it lies in [0, 1)"),
        ("minicache:start=-0.1", "start=-0.1; it lies in [0, 1)"),
        ("minicache:gamma=1.5", "gamma=1.5; it lies in [0, 1]"),
        ("minicache:t=-0.1", "t=-0.1; it lies in [0, 1]"),
        ("think:key_channel_compression_ratio=1.0", "key_channel_compression_ratio=1.0; it lies in [0, 1)"),
        ("think:window=0", "window=0; it must be at least 1"),
        ("think:recent=-1", "recent=-1; it must be at least 0"),
    ],
)
def test_a_methods_value_out_of_range_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(MethodSpec.parse(text), RunSpec())
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("capacity:find=tokens", "find=tokens; it must be batch or context"),
        ("capacity:limit_gib=-1", "limit_gib=-1.0; it must be at least 0"),
        ("capacity:steps=0", "steps=0; it must be at least 1"),
        ("speed:batch=1+x", "batch=1+x; write whole numbers joined by +"),
        ("speed:context=0", "context=0; write whole numbers"),
        ("speed:repeats=0", "repeats=0; it must be at least 1"),
        ("memory:steps=-1", "steps=-1; it must be at least 0"),
        ("memory:batch=1.5", "batch=1.5; write whole numbers"),
        ("speed:path=fast", "path=fast; it must be auto, fused or reference"),
        ("speed:fill=x", "fill=x; it must be prefill or random"),
        ("tasks:question=maybe", "question=maybe; it must be hidden, visible or both"),
        ("tasks:questions=-1", "questions=-1; it must be at least 0"),
        ("tasks:missing=perhaps", "missing=perhaps; it must be refuse or skip"),
        ("tasks:names=a+", "names=a+; join names by +"),
        ("longbench:max_length=1", "max_length=1; it must be 0 or at least 2"),
        ("longbench:subsets=qasper+qasper", "subsets=qasper+qasper; name each once"),
        ("longbench:samples=0", "samples=0; it must be at least 1"),
        ("ruler:tasks=vt+vt", "tasks=vt+vt; name each once"),
        ("ruler:lengths=512+512", "lengths=512+512; name each once"),
        ("ruler:lengths=x", "lengths=x; write whole numbers"),
        ("ruler:filler=x", "filler=x; it must be auto, essays or reference"),
        ("drift:tokens=0", "tokens=0; it must be at least 1"),
        ("drift:tokens=4", "short=8 is beyond tokens=4"),
        ("spectrum:ranks=8+x", "ranks=8+x; write whole numbers"),
        ("spectrum:samples=-1", "samples=-1; it must be at least 0"),
        ("reconstruction:samples=-1", "samples=-1; it must be at least 0"),
        ("attention_similarity:queries=0", "queries=0; it must be at least 1"),
        ("ruler:threshold=0", "threshold=0.0; it lies in (0, 1]"),
        ("audit:steps=1", "steps=1; it must be at least 2"),
        ("needle:needles=100", "needles=100; it lies in [2, 99]"),
        ("drift:short=65", "short=65 is beyond tokens=64; write tokens=65 or more"),
    ],
)
def test_an_evaluators_value_out_of_range_is_refused(text: str, says: str) -> None:
    spec = EvaluatorSpec.parse(text)
    with pytest.raises(UsageError) as caught:
        build(EVALUATORS.load(spec.name), spec, "evaluator")
    assert says in caught.value.message


@dataclass(frozen=True)
class Wide(Eviction):
    """Declares each kind of range."""

    name: ClassVar[str] = "wide"
    share: float = param(0.5, "a share", within="(0, 1)")
    count: int | None = param(None, "a count, or none", least=2)


@dataclass(frozen=True)
class Narrow(Wide):
    """Has another default, and nothing else of its own."""

    share: float = 0.25
    decode: str = "hold"


@dataclass(frozen=True)
class Forgetful(Wide):
    """Does not ask its base what it checks."""

    def __post_init__(self) -> None:
        pass


def test_what_is_built_is_checked_whatever_the_class_forgets() -> None:
    with pytest.raises(UsageError, match="count=1; it must be at least 2"):
        build(Forgetful, MethodSpec.parse("wide:count=1"), "method")


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_an_interval_leaves_out_its_round_ends(value: float) -> None:
    for cls in (Wide, Narrow):
        with pytest.raises(ValueError, match=rf"share={value}; it lies in \(0, 1\)"):
            cls(share=value)


def test_another_default_keeps_what_was_declared_and_none_is_in_every_range() -> None:
    assert [(name, default) for name, default, _ in Narrow.parameters() if name in ("share", "decode")] == [
        ("decode", "hold"),
        ("share", 0.25),
    ]
    assert {name: meaning for name, _, meaning in Narrow.parameters()} == {name: meaning for name, _, meaning in Wide.parameters()}
    assert Narrow(count=None).count is None
    with pytest.raises(ValueError, match="count=1; it must be at least 2"):
        Narrow(count=1)
    with pytest.raises(ValueError, match="decode=keep; it must be grow or hold"):
        Narrow(decode="keep")
