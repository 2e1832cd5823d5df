"""Greedy tokens of the fused path are the plain path's, for every method that it reads; the others say why it does not."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from kvbench.caches.cache import CacheOptions, Geometry, use_kvbench_attention
from kvbench.caches.needs import Needs
from kvbench.caches.packing import quantise
from kvbench.calibration import provide
from kvbench.fused import layer as fusing
from kvbench.fused import oracle, storage, window
from kvbench.fused.storage import Region
from kvbench.instruments import agreement as agreeing
from kvbench.instruments.agreement import Agreement, Differing, agreement, rounded_otherwise
from kvbench.instruments.protocol import Prompt, Runner
from kvbench.instruments.stored_codes import Stored
from kvbench.instruments.tiny import FAMILIES, make_tiny_config, make_tiny_model
from kvbench.methods.base import Method, expand, resolve
from kvbench.models.shape import shape_of
from kvbench.models.weights import silent
from kvbench.spec import MethodSpec, RunSpec

if TYPE_CHECKING:
    from kvbench.models.loading import LoadedModel

PROMPT, STEPS = 150, 256
SHORT, FLUSHING = 72, 120
"""Steps that fill a tile with new tokens, and go over the end of one that the prompt has begun; as many as KIVI flushes in."""
SIZE = 64
"""Of a head: at 16, which the tiny models have, no kernel reads codes of 4 or 2 bits."""
FUSED = {
    "baseline", "random", "streaming_llm", "knorm", "keydiff", "lagkv", "tova", "observed_attention", "expected_attention",
    "snapkv", "pyramidkv", "adakv", "int8", "int4", "v_lowrank", "hybrid_8x", "hybrid_12x", "kivi:bits=4",
    "kivi:bits=2",
}  # fmt: skip
"""Of ``all``, those that have kernels: none may fall off unnoticed. One that gains kernels is added here."""
FUSED_VARIANTS = {
    "h2o:decode=grow", "snapkv:window=8,decode=grow", "adakv:score_by=observed_attention", "adakv:alpha_safeguard=0",
    "snapkv+int8", "snapkv+int4", "snapkv+kivi:bits=2", "kivi:k_bits=2,v_bits=4", "kivi:bits=2,residual=64",
    "adakv+int4", "adakv+int8", "expected_attention+int4", "int4:group=64", "int4:group=16",
    "int4:k_bits=2,v_bits=2", "int4:k_bits=2,v_bits=2,group=64", "int4:k_bits=8,v_bits=4", "int4:symmetric=true",
    "v_lowrank:rank=32", "v_lowrank:basis=random,bits=4", "v_lowrank:bits=8", "hybrid:k_bits=4,v_bits=2", "hybrid:guard=0,k_bits=2",
}  # fmt: skip
"""Parameters that change what is stored."""
UNFUSED_VARIANTS = {
    "snapkv:decode=hold",
    "int4:k_bits=3",
    "fp8:k_bits=16",
    "kivi:bits=2,residual=96",
    "adakv+kivi:bits=2",
    "pyramidkv:window=8+kivi:bits=2",
}
ALL = {spec.label for spec in expand(["all"])}
PINNED = {*FUSED, *FUSED_VARIANTS}


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(3, 128, (rows, length), generator=torch.Generator().manual_seed(7))


@cache
def method_of(label: str) -> Method:
    method = resolve(MethodSpec.parse(label), RunSpec())
    method.check(shape_of(make_tiny_config("qwen2") | {"head_dim": SIZE}))
    return method


@cache
def bench(family: str, rows: int = 1, length: int = PROMPT) -> tuple[Runner, Prompt]:
    """A tiny model with everything that any method reads of it, and one prompt for all of them."""
    methods = [method_of(label) for label in sorted(ALL | PINNED | UNFUSED_VARIANTS)]
    model = make_tiny_model(family, head_dim=SIZE, num_hidden_layers=2)
    use_kvbench_attention(model)
    geometry, names = Geometry.of(model), {name for method in methods for name in method.artefacts}
    draw = torch.randint(128, (512,), generator=torch.Generator().manual_seed(1))
    artefacts = provide(names, model, geometry, draw, weights_hash=None, folder=None, stage=silent)
    runner = Runner(model, geometry, artefacts, CacheOptions(None, context=length))
    return runner, runner.prefill(tokens(rows, length), reduce(lambda a, b: a | b, (method.needs for method in methods), Needs()))


WHOLE = bool(os.environ.get("KVBENCH_FULL"))
"""Every method on every family for all steps, and the embedded model for as many: minutes."""
TURNS = [
    pytest.param(label, family, STEPS if WHOLE else FLUSHING if "kivi" in label else SHORT, id=f"{family}-{label}")
    for i, label in enumerate(sorted(ALL | PINNED))
    for family in (FAMILIES if WHOLE else [FAMILIES[i % len(FAMILIES)]])
]


def assert_alike(found: Agreement, steps: int) -> None:
    """In float64 nothing lies on a boundary: tokens and codes are the same, and no rounding had to be measured."""
    assert replace(found, stored=None) == Agreement(steps, (), "fused")
    assert found.verdict == "same"
    assert found.stored is None or (found.stored.flipped, found.stored.drifted, found.stored.prompt) == (0, 0, 0)


@pytest.mark.parametrize(("label", "family", "steps"), TURNS)
def test_the_tokens_of_the_fused_path_are_the_plain_paths(label: str, family: str, steps: int) -> None:
    runner, prompt = bench(family)
    found = agreement(runner, method_of(label), prompt, steps)
    if found.read_path == "reference":
        assert label not in PINNED, found.reason
        assert found.reason
        return
    assert_alike(found, steps)
    assert label in PINNED, f"{label} has kernels: add it to FUSED"


@pytest.mark.fast
@pytest.mark.parametrize("label", ["adakv+int4", "snapkv", "v_lowrank", "kivi:bits=2,residual=64"])
def test_rows_of_a_batch_agree_too(label: str) -> None:
    runner, prompt = bench("llama", rows=3, length=45)
    assert_alike(agreement(runner, method_of(label), prompt, 80), 80)


@pytest.mark.parametrize("label", sorted(UNFUSED_VARIANTS))
def test_a_storage_without_kernels_says_so(label: str) -> None:
    runner, prompt = bench("qwen2", length=45)
    found = agreement(runner, method_of(label), prompt, 4)
    assert (found.steps, found.read_path, found.holds, found.verdict) == (0, "reference", True, "not fused")
    assert found.reason


@pytest.mark.fast
def test_the_page_says_which_methods_have_kernels() -> None:
    text = (Path(agreeing.__file__).parents[1] / "docs" / "speed.md").read_text(encoding="utf-8")
    section = text.split("## Which methods have kernels")[1].split("\n## ")[0]
    tables = [block for block in section.split("\n\n") if block.startswith("| method |")]
    fused, others = ({name for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])} for table in tables)
    assert fused == FUSED
    assert others - {"decode=hold"} == ALL - FUSED


def damaged(monkeypatch: pytest.MonkeyPatch, damage: Callable[[Region], None]) -> None:
    """What the fused path takes over of the second layer is damaged."""
    taken_over = fusing.fuse

    def broken(*given: Any) -> Any:
        state = taken_over(*given)
        damage(state.layers[1].taken.regions[0])
        return state

    monkeypatch.setattr(fusing, "fuse", broken)


@pytest.mark.fast
@pytest.mark.parametrize("side", ["keys", "values"])
def test_one_token_read_wrongly_is_seen_and_is_no_tie(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored token's numbers change sign when the cache is taken over: the smallest thing that a wrong kernel might do."""

    def damage(region: Region) -> None:
        getattr(region, side).numbers[int(region.first[0]) + 3] *= -1

    damaged(monkeypatch, damage)
    runner, prompt = bench("llama", length=45)
    found = agreement(runner, method_of("baseline"), prompt, 96)
    assert found.read_path == "fused"
    assert 0 < len(found.differing) == found.steps - found.agreeing
    assert found.noise is not None
    assert found.noise < 1e-9
    assert (found.stored, found.verdict, found.holds) == (None, "WRONG", False)
    assert all(one.gap > 0 and one.wanted != one.written for one in found.differing)


@pytest.mark.fast
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rounding_otherwise_moves_results_by_a_unit_in_their_last_place_at_most(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 512)).to(dtype)
    x = torch.randn(4, 32, dtype=dtype)
    with torch.no_grad():
        own = model(x)
        with rounded_otherwise(model):
            moved = model(x)
        assert torch.equal(model(x), own)
    unit = torch.finfo(dtype).eps * 2.0 ** own.double().abs().log2().floor()
    assert ((moved.double() - own.double()).abs() <= unit).all()
    assert 0.1 < float((moved != own).double().mean()) < 0.6


def test_a_tie_is_a_gap_within_twice_the_noise() -> None:
    logits = torch.zeros(2, 3, 5)
    logits[0, 0, 1], logits[0, 2, 4], logits[1, 1, 2] = 2.0, 3.0, 0.25
    written = torch.tensor([[1, 0, 3], [0, 4, 0]])
    differing = tuple(agreeing._differing(logits, written))
    assert differing == (Differing(1, 1, 4, 2, 0.25), Differing(0, 2, 3, 4, 3.0))
    assert not Agreement(3, differing, "fused", noise=0.2).holds
    assert Agreement(3, differing[:1], "fused", noise=0.2).holds
    assert Agreement(3, differing, "fused", noise=0.2).agreeing == 1


@contextmanager
def rounding_of(runner: Runner, size: float) -> Iterator[None]:
    """While open, the plain path's keys and values are rounded by ``size``, anew in every forward; the fused path's are not."""
    draw = torch.Generator().manual_seed(0)

    def rounded(_: object, given: object, out: torch.Tensor) -> torch.Tensor:
        return out * (1 + size * torch.randn(out.shape, generator=draw, dtype=out.dtype))

    modules: tuple[Any, ...] = runner.geometry.modules
    projections = [p for module in modules for p in (module.k_proj, module.v_proj)]
    hooks = [p.register_forward_hook(rounded) for p in projections]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("label", "family", "size"), [("adakv+int4", "qwen2", 1e-5), ("int4:k_bits=2,v_bits=2", "llama", 1e-4), ("kivi:bits=2", "qwen2", 1e-4)]
)
def test_codes_that_rounding_flips_explain_other_tokens(label: str, family: str, size: float) -> None:
    runner, prompt = bench(family)
    with rounding_of(runner, size):
        found = agreement(runner, method_of(label), prompt, 200)
    assert found.stored is not None
    assert found.noise is not None
    assert max(one.gap for one in found.differing) > 2 * found.noise
    assert found.unexplained == ()
    assert (found.verdict, found.holds) == ("code flip", True)
    assert 0 < found.stored.flipped < 1e-3 * found.stored.codes
    assert found.stored.drifted > found.stored.flipped
    assert (found.stored.levels, found.stored.prompt) == (1, 0)
    assert 0 < found.stored.beyond < 0.01


@pytest.mark.fast
@pytest.mark.parametrize("label", ["int4", "int4:symmetric=true"])
def test_scales_of_sixteen_bits_may_be_rounded_the_other_way(label: str) -> None:
    runner, prompt = bench("qwen2")
    runner = replace(runner, options=CacheOptions(torch.bfloat16, context=PROMPT))
    with rounding_of(runner, 1e-3):
        found = agreement(runner, method_of(label), prompt, 64)
    assert found.holds, found
    assert found.stored is not None
    assert found.stored.shifted > 0
    assert found.stored.beyond < 0.1


Codes = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def _one_level(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Codes:
    codes[..., 5] = torch.where(codes[..., 5] > 8, codes[..., 5] - 1, codes[..., 5] + 1)
    return codes, scale, zero


def _levels(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Codes:
    codes[..., 5] = (codes[..., 5] + 5) % 16
    return codes, scale, zero


def _scale(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Codes:
    return codes, scale * 1.02, zero


@pytest.mark.fast
@pytest.mark.parametrize("defect", [_one_level, _levels, _scale])
@pytest.mark.parametrize("label", ["int4", "adakv+int4"])
def test_one_token_stored_wrongly_is_no_flip(label: str, defect: Callable[..., Codes], monkeypatch: pytest.MonkeyPatch) -> None:
    """One side of one row and head of one token, and one level of one number: it may change no token, and is wrong all the same."""
    runner, prompt = bench("llama", length=45)
    calls: list[None] = []

    def broken(*given: Any) -> Codes:
        calls.append(None)
        found = quantise(*given)
        return defect(*found) if len(calls) == 50 else found

    monkeypatch.setattr(storage, "quantise", broken)
    with rounding_of(runner, 1e-6):
        found = agreement(runner, method_of(label), prompt, 40)
    assert found.stored is not None
    assert found.stored.beyond > 100 * found.stored.rounding
    assert found.stored.prompt == 0
    assert (found.verdict, found.holds) == ("WRONG", False)


@pytest.mark.fast
@pytest.mark.parametrize(("label", "where"), [("int4", storage), ("kivi:bits=2,residual=64", storage), ("kivi:bits=2,residual=64", window)])
def test_numbers_rounded_down_are_no_flips(label: str, where: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every code then differs by one level at most, as a flip does."""
    runner, prompt = bench("llama", length=45)

    def down(x: torch.Tensor, scheme: Any, dtype: torch.dtype) -> Codes:
        _, scale, zero = quantise(x, scheme, dtype)
        assert zero is not None
        dim = 2 if scheme.axis == "channel" else 3
        low, step = (t.repeat_interleave(scheme.group, dim) for t in (zero, scale))
        return ((x - low) / step).floor().clamp(0, scheme.levels).to(torch.uint8), scale, zero

    monkeypatch.setattr(where, "quantise", down)
    found = agreement(runner, method_of(label), prompt, 96)
    assert found.stored is not None
    assert found.stored.levels == 1
    assert found.stored.flipped > 100
    assert found.stored.beyond > 0.3
    assert (found.verdict, found.holds) == ("WRONG", False)


@pytest.mark.fast
def test_codes_read_wrongly_are_not_explained_by_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored is right up to flips; the fused path reads values a little too large."""
    monkeypatch.setattr(oracle, "side", lambda *given, is_value: storage.side(*given, is_value=is_value) * (1.02 if is_value else 1))
    runner, prompt = bench("llama")
    with rounding_of(runner, 1e-5):
        found = agreement(runner, method_of("int4"), prompt, 200)
    assert found.stored is not None
    assert found.unexplained
    assert (found.verdict, found.holds) == ("WRONG", False)


@pytest.mark.fast
@pytest.mark.parametrize("label", ["int4", "hybrid_8x"])
def test_a_code_of_the_prompt_that_differs_is_wrong(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def damage(region: Region) -> None:
        region.keys.numbers[int(region.first[1]) + 3, 2] ^= 1

    damaged(monkeypatch, damage)
    runner, prompt = bench("llama", length=45)
    found = agreement(runner, method_of(label), prompt, 4)
    assert found.stored is not None
    assert found.stored.prompt == 1
    assert (found.verdict, found.holds) == ("WRONG", False)


@pytest.mark.fast
def test_verdicts() -> None:
    far, near = Differing(0, 3, 1, 2, 0.5), Differing(0, 3, 1, 2, 1e-5)
    flips = Stored(1000, 2, 1, 9, beyond=3e-5, rounding=1e-5, drifted=40)
    found = Agreement(9, (far,), "fused", noise=1e-5, stored=flips)
    assert found.verdict == "code flip"
    assert replace(found, stored=None).verdict == "WRONG"
    assert replace(found, differing=(near,)).verdict == replace(found, differing=(near,), stored=None).verdict == "tie"
    assert replace(found, unexplained=(near,)).verdict == "code flip"
    assert replace(found, unexplained=(far,)).verdict == "WRONG"
    assert replace(found, stored=replace(flips, flipped=0, drifted=0)).verdict == "WRONG"  # no code differs, so none explains it
    assert replace(found, stored=replace(flips, prompt=1)).verdict == "WRONG"
    for differing in ((), (near,), (far,)):
        assert replace(found, differing=differing, stored=replace(flips, beyond=0.3)).verdict == "WRONG"
    assert replace(found, differing=()).verdict == "same"
    assert replace(found, stored=replace(flips, beyond=float("nan"))).verdict == "WRONG"
    assert (
        str(flips) == "2 of 1,000 codes differ, by 1 level, 3.0e-05 levels beyond the boundary (rounding: 1.0e-05); 40 in all that followed"
    )


@pytest.mark.model
@pytest.mark.parametrize("label", sorted(FUSED) if WHOLE else ["baseline", "snapkv+int4", "v_lowrank"])
def test_the_embedded_model_writes_the_same_tokens_in_float32(label: str, embedded_model: LoadedModel) -> None:
    from pydoc_data.topics import topics

    model, method = embedded_model.model, resolve(MethodSpec.parse(label), RunSpec())
    use_kvbench_attention(model)
    geometry, ids = Geometry.of(model), embedded_model.tokenizer(topics["typesseq"], return_tensors="pt").input_ids
    artefacts = provide(method.artefacts, model, geometry, ids[0, 200:712], weights_hash=None, folder=None, stage=silent)
    runner = Runner(model, geometry, artefacts, CacheOptions(torch.float32, context=200))
    found = agreement(runner, method, runner.prefill(ids[:, :200], method.needs), STEPS if WHOLE else 16)
    assert found.read_path == "fused"
    assert found.holds, found
    assert found.agreeing >= found.steps - 2
    assert found.stored is None or found.stored.levels <= 1
