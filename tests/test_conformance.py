"""Every method, every path, the same numbers: block = token by token, batch, padding, generate, streaming, ledger."""

from __future__ import annotations

import pytest

from kvbench.instruments.tiny import FAMILIES
from kvbench.instruments.verify import Sizes, conformance
from kvbench.methods.base import expand, resolve
from kvbench.spec import RunSpec

SIZES = Sizes(context=45, continuation=43)
SMALLER = [
    "kivi:bits=2,group=8,residual=16",
    "kivi:bits=3,k_bits=4,group=16,residual=32",
    "snapkv:window=8",
    "hybrid:window=8,group=8,pyramid=0.4,retain=0.5",
    "hybrid:window=8,guard=0",
    "hybrid:window=8,guard=1",
    "v_lowrank:basis=random,bits=4",
    "int4:group=8,symmetric=true",
    "expected_attention:use_vnorm=false,use_covariance=false",
    "streaming_llm:n_sink=0,compression_ratio=0.8",
    "snapkv:window=8,decode=hold,interval=7",
    "expected_attention:decode=hold,interval=5",
    "adakv:score_by=observed_attention,decode=hold,interval=3",
    "snapkv:window=8+kivi:bits=2,group=8,residual=16",
    "adakv:alpha_safeguard=0+int4",
    "kvzap:threshold=-1.1,window=16+kivi:bits=2,group=8,residual=16",
    "int4:v_axis=channel,group=8,residual=16",
    "fp8:k_bits=16",
    "kivi:k_bits=2,v_bits=16,group=8,residual=16",
    "kivi:k_bits=16,v_bits=2,group=8,residual=16",
    "kivi:k_axis=token,group=8,residual=16",
]
"""Windows and residuals small enough to fill and flush several times within the test's tokens."""
LABELS = [spec.label for spec in expand(["all", *SMALLER])]


TURNS = [
    pytest.param(label, family, id=f"{family}-{label}", marks=[pytest.mark.fast] if (i + j) % 2 else [])
    for i, label in enumerate(LABELS)
    for j, family in enumerate(FAMILIES)
]
"""Under the oldest transformers each method is tried on one family, in turns."""


@pytest.mark.parametrize(("label", "family"), TURNS)
def test_every_path_gives_the_same_numbers(label: str, family: str) -> None:
    spec = next(s for s in expand(["all", *SMALLER]) if s.label == label)
    failed = [check for check in conformance(resolve(spec, RunSpec()), family, SIZES) if not check.passed]
    assert not failed
