"""What a factor is of: 16 bit on every device unless asked otherwise, and said wherever a wider baseline is shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
from test_evaluators import made_up

from kvbench.compare import compare
from kvbench.compare.render import text
from kvbench.compare.sides import side_of
from kvbench.displays.ending import render
from kvbench.displays.plain import Plain
from kvbench.figures import Grid, Table
from kvbench.metrics import factors
from kvbench.models.devices import choose_cache_dtype
from kvbench.record import events as ev
from kvbench.record import results
from kvbench.record.state import MethodState, RunState
from kvbench.record.summary import rows
from kvbench.report import FORMATS, write
from kvbench.spec import EvaluatorSpec, MethodSpec, ModelSpec, RunSpec, auto_cache_dtype
from kvbench.tui.columns import columns

OF = re.compile(r"of a float32 cache|of float32|× f32")


def state(cache_dtype: str) -> RunState:
    """A finished run of two scored methods."""
    spec = RunSpec(methods=(MethodSpec("baseline"), MethodSpec("int4")), evaluators=(EvaluatorSpec("perplexity"),))
    methods = {label: MethodState(label, "done", units_done=1, units_planned=1, audit_label="real") for label in ("baseline", "int4")}
    records = {"perplexity": {"baseline": made_up(1, 0.0), "int4": made_up(2, 0.08)}}
    model = {"id": "m", "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "dtype": "float32", "cache_dtype": cache_dtype}
    return RunState(status="finished", spec=spec, methods=MappingProxyType(methods), records=records, model=model)


@pytest.mark.parametrize(
    ("dtype", "config", "expected"),
    [
        ("float32", {}, "bfloat16"),
        ("float32", {"dtype": "float16"}, "float16"),
        ("float32", {"torch_dtype": "torch.bfloat16"}, "bfloat16"),
        ("float32", {"dtype": "float32"}, "bfloat16"),
        ("float64", {"dtype": "float64"}, "bfloat16"),
        ("float16", {"dtype": "bfloat16"}, "float16"),
        ("bfloat16", {"dtype": "float32"}, "bfloat16"),
    ],
)
def test_auto_is_16_bit(dtype: str, config: dict[str, Any], expected: str) -> None:
    assert auto_cache_dtype(dtype, config) == expected


@pytest.mark.parametrize(("asked", "expected"), [("auto", "bfloat16"), ("float32", "float32"), ("float16", "float16")])
def test_a_model_on_a_cpu_has_a_16_bit_baseline_unless_asked_otherwise(asked: Any, expected: str, tiny_model: Callable[..., Any]) -> None:
    import torch

    config = tiny_model("qwen2", torch.float32).config
    assert str(choose_cache_dtype(ModelSpec(cache_dtype=asked), config, torch.float32)) == f"torch.{expected}"


def test_every_row_of_a_result_says_what_its_factors_are_of() -> None:
    built = results.build(state("float32"), "wide")
    assert [row["cache_dtype"] for row in built["results"]] == ["float32", "float32"]
    assert results.build(RunState(spec=state("auto").spec, methods=state("auto").methods), "new")["results"][0]["cache_dtype"] is None


@pytest.mark.parametrize(("cache_dtype", "said"), [("float32", True), ("bfloat16", False), ("float16", False)])
def test_a_wide_baseline_is_said_wherever_a_factor_is(cache_dtype: str, said: bool) -> None:
    found = state(cache_dtype)
    result = results.build(found, "run")
    shown = [render(found), *(write(result, kind) for kind in FORMATS), factor_column(found), met(found)]
    assert [bool(OF.search(text)) for text in shown] == [said] * len(shown)


@pytest.mark.parametrize(("cache_dtype", "times"), [("float32", "2"), ("float64", "4")])
def test_a_note_says_how_much_wider_the_baseline_is(cache_dtype: str, times: str) -> None:
    assert f"{cache_dtype} cache, which is {times} times as large" in factors.notes(cache_dtype)[0]
    assert factors.notes(None) == factors.notes("bfloat16") == []


def factor_column(found: RunState) -> str:
    """The dashboard's heading."""
    return next(c.title for c in columns(rows(found)) if c.key == "factor")


def met(found: RunState) -> str:
    """The line about a budget in the plain display."""
    import io

    out = io.StringIO()
    Plain(out).tell(found, ev.BudgetSolved(0.0, "int4@4x", "4x", {"group": 64}, 25.0, 24, 100))
    return out.getvalue()


def test_tables_of_factors_are_noted_and_others_left_as_they_are() -> None:
    with_factors, without = Table("a", "A", ["m", "×"], [["x", "2×"]], factors=True), Table("b", "B", ["m", "s"], [["x", "2×"]])
    grid = Grid("g", "factor by a and b", "int4", ["1"], ["2"], [[2.0]], factors=True)
    noted = factors.noted([with_factors, without, grid], "float32")
    assert ["float32" in "".join(figure.notes) for figure in noted] == [True, False, True]
    assert factors.noted([with_factors, grid], "bfloat16") == [with_factors, grid]


@pytest.mark.parametrize(
    ("a", "b", "marks"), [("float32", "float32", ["A's and B's"]), ("float32", "bfloat16", ["A's"]), ("float16", "float16", [])]
)
def test_compare_says_it_of_each_side(a: str, b: str, marks: list[str]) -> None:
    one, other = (side_of(results.build(state(dtype), name)) for dtype, name in ((a, "a"), (b, "b")))
    found = compare(one, other)
    assert [line.partition(" factors")[0] for line in found.warnings if "factors are of" in line] == marks
    assert ("factors of float32" in text(found)) == bool(marks)
