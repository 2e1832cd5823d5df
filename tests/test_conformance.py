"""Every method, every path, the same numbers: block = token by token, batch, padding, generate, streaming, ledger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kvbench.instruments.tiny import FAMILIES
from kvbench.instruments.verify import Sizes, conformance
from kvbench.methods.base import METHODS, expand, resolve
from kvbench.spec import MethodSpec, RunSpec

SIZES = Sizes(context=27, continuation=25, layers=2)
"""Residuals of 16 fill three times, and intervals of 8."""
LONGER = Sizes(context=30, continuation=36, layers=2)
"""32 tokens, between which some methods wait, go by twice."""
DEEPER = Sizes(context=27, continuation=25, layers=4)
"""For methods that treat layers by their depth."""
SMALL = {
    "asymkv": "asymkv:window=8,n_sink=4",
    "hybrid_5x": "hybrid_5x:window=8",
    "hybrid_8x": "hybrid_8x:window=8",
    "hybrid_12x": "hybrid_12x:window=8",
    "kivi:bits=2": "kivi:bits=2,group=8,residual=16",
    "kivi:bits=3": "kivi:bits=3,k_bits=4,group=16,residual=32",
    "kivi:bits=4": "kivi:k_axis=token,bits=4,group=8,residual=16",
    "kvzap": "kvzap:threshold=-1.1,window=8",
    "kvzap:threshold=-4": "kvzap:threshold=-0.5,window=16,surrogate=mlp",
    "lagkv": "lagkv:lag_size=6",
    "pyramidkv": "pyramidkv:window=4,beta=2",
    "snapkv": "snapkv:window=8",
    "think": "think:window=8,recent=8",
}
"""What stands for a default of ``all`` whose windows and residuals a test's tokens would not fill."""
FURTHER = [
    "adakv:alpha_safeguard=0+int4",
    "adakv:score_by=observed_attention,decode=hold,interval=3",
    "asymkv:window=8,n_sink=2,compression_ratio=0.9,weights=attention",
    "asymkv:weights=cardinality,window=4",
    "expected_attention:decode=hold,interval=5",
    "expected_attention:use_vnorm=false,use_covariance=false",
    "fp8:k_bits=16",
    "hybrid:window=8,group=8,pyramid=0.4,retain=0.5",
    "hybrid:window=8,guard=0",
    "hybrid:window=8,guard=1",
    "int4:group=8,symmetric=true",
    "int4:v_axis=channel,group=8,residual=16",
    "keydiff:decode=hold,interval=8",
    "kivi:k_bits=16,v_bits=2,group=8,residual=16",
    "kivi:k_bits=2,v_bits=16,group=8,residual=16",
    "kvzap:threshold=-1.1,window=0",
    "kvzap:threshold=-1.1,window=16+kivi:bits=2,group=8,residual=16",
    "lagkv:lag_size=5,n_sink=0,cross_scoring=true",
    "lagkv:lag_size=6,decode=hold,interval=5",
    "orthogonal:energy=0.9",
    "orthogonal:k_rank=3,v_rank=16",
    "orthogonal_int8:rank=5",
    "palu:basis=random,hadamard=false,bits=8",
    "palu:energy=0.9,per_layer=true",
    "palu:group_heads=1,bits=2,rank=8",
    "pyramidkv:window=3,beta=2,compression_ratio=0.7",
    "pyramidkv:window=4,beta=2,decode=hold,interval=8",
    "snapkv:window=8+kivi:bits=2,group=8,residual=16",
    "snapkv:window=8,decode=hold,interval=7",
    "streaming_llm:n_sink=0,compression_ratio=0.8",
    "turboquant:bits=1,v_residual=true,recent=1",
    "turboquant:recent=5,k_residual=false",
    "v_lowrank:basis=random,bits=4",
    "v_lowrank:energy=0.7,per_layer=true,bits=4",
    "v_lowrank:rank=3",
]
"""Parameters that take another way through the code than any default does."""
SMALLER = [*SMALL.values(), *FURTHER]
DEFAULTS = [SMALL.get(spec.label, spec.label) for spec in expand(["all"])]
WAITING = ("kivi:bits=3", "kvzap", "turboquant:bits=1", "turboquant:recent")
BY_DEPTH = ("hybrid:window=8,group=8,pyramid", "minicache", "pyramidkv")
PROJECTING = ("orthogonal", "palu", "v_lowrank")


def cases() -> Iterator[Any]:
    """A default on every family, and once, in turns, under the oldest transformers.

    Further parameters go on llama alone: its three queries a KV head tell heads from groups, of which the other family has two
    as it has two KV heads. Where projections are folded they go on both: only the other's have biases.
    """
    for i, label in enumerate([*DEFAULTS, *FURTHER]):
        both = label in DEFAULTS or label.startswith(PROJECTING)
        for j, family in enumerate(FAMILIES if both else ("llama",)):
            fast = (i + j) % 2 == 0 or not both
            yield pytest.param(label, family, id=f"{family}-{label}", marks=[pytest.mark.fast] if fast else [])


@pytest.mark.parametrize(("label", "family"), cases())
def test_every_path_gives_the_same_numbers(label: str, family: str) -> None:
    sizes = LONGER if label.startswith(WAITING) else DEEPER if label.startswith(BY_DEPTH) else SIZES
    assert not [check for check in conformance(resolve(MethodSpec.parse(label), RunSpec()), family, sizes) if not check.passed]


def test_every_label_of_all_is_tried() -> None:
    assert set(SMALL) <= {spec.label for spec in expand(["all"])}
    assert {MethodSpec.parse(label).name for label in DEFAULTS} == set(METHODS.names()) - {"hybrid", "kvpress"}
