"""Rows that kept the same tokens: told from what is read, over all samples, and said wherever rows are shown."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from itertools import combinations
from operator import or_
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvbench.caches.cache import CacheOptions, Geometry, use_kvbench_attention
from kvbench.displays.ending import render
from kvbench.engine.journal import SCHEMA
from kvbench.instruments.kept_tokens import mark, written
from kvbench.instruments.protocol import Runner
from kvbench.methods.base import expand, resolve
from kvbench.metrics.sameness import first_alike, mark_of
from kvbench.metrics.stats import histogram, histogram_to_json, kl_bin_index
from kvbench.record import events as ev
from kvbench.record import results
from kvbench.record.state import RunState, apply
from kvbench.report.content import build
from kvbench.spec import EvaluatorSpec, MethodSpec, RunSpec

pytestmark = pytest.mark.fast
EVICTIONS = ("streaming_llm", "lagkv", "snapkv:window=16", "pyramidkv:window=16", "knorm", "random", "tova", "snapkv:window=16,decode=hold")


@pytest.fixture
def runner(tiny_model: Callable[..., Any]) -> Runner:
    model = tiny_model("llama")
    use_kvbench_attention(model)
    return Runner(model, Geometry.of(model), {}, CacheOptions(None))


def test_marks_are_equal_where_positions_are_and_nowhere_else(runner: Runner) -> None:
    methods = {m.label: resolve(m, RunSpec()) for m in expand(list(EVICTIONS)) if m.label != "baseline"}
    tokens = torch.randint(3, 128, (2, 60), generator=torch.Generator().manual_seed(0))
    prompt = runner.prefill(tokens, reduce(or_, (m.needs for m in methods.values())))
    marks, places = {}, {}
    for label, method in methods.items():
        cache = runner.compress(method, prompt)
        found = mark(cache, 2)
        assert found is not None
        marks[label] = written(found)
        places[label] = [layer.places(view).sort(-1).values for layer, view in zip(cache.layers, prompt.views, strict=True)]
    for a, b in combinations(methods, 2):
        for row in range(2):
            alike = all(x.shape == y.shape and torch.equal(x[row], y[row]) for x, y in zip(places[a], places[b], strict=True))
            assert (marks[a][row] == marks[b][row]) == alike, (a, b, row)
    assert marks["lagkv"] == marks["streaming_llm"]
    assert marks["knorm"] != marks["random"]


@pytest.mark.parametrize("label", ["snapkv:window=16+int8", "adakv:window=16"])
def test_another_storage_has_another_mark_and_the_same_has_the_same(label: str, runner: Runner) -> None:
    plain, other = (resolve(MethodSpec.parse(text), RunSpec()) for text in ("snapkv:window=16", label))
    prompt = runner.prefill(torch.randint(3, 128, (2, 60), generator=torch.Generator().manual_seed(0)), plain.needs | other.needs)
    first, one, again = (mark(runner.compress(method, prompt), 2) for method in (plain, other, other))
    assert first is not None
    assert one is not None
    assert again is not None
    assert torch.equal(one, again)
    assert not (one == first).any()
    assert one[0] != one[1]


class Unreadable:
    def read(self, dtype: torch.dtype) -> Any:
        raise NotImplementedError


def test_what_cannot_be_read_has_no_mark() -> None:
    assert mark(SimpleNamespace(layers=[Unreadable()]), 1) is None  # type: ignore[arg-type]


def test_one_sample_that_differs_makes_another_row() -> None:
    one = {"0": {"kept": "a", "nll": 1.5}, "1": {"kept": "b", "nll": 2.5}}
    assert mark_of(one) == mark_of(dict(reversed(one.items())))
    assert mark_of({**one, "1": {"kept": "b", "nll": 2.5000001}}) != mark_of(one)
    assert mark_of({**one, "1": {"kept": "c", "nll": 2.5}}) != mark_of(one)
    assert mark_of({**one, "1": {"nll": 2.5}}) is None
    assert mark_of({}) is None
    assert first_alike({"a": "1", "b": None, "c": "1", "d": None, "e": "2", "f": "1"}) == {"c": "a", "f": "a"}


def scored(nll: float, kept: str | None) -> dict[str, Any]:
    known: dict[str, Any] = {"tokens": 4, "nll": nll, "kl": 0.4, "kl_max": 0.1, "agree": 3, "tokens_read_compressed": 3}
    known |= {"keys_held": 1, "keys_total": 2}
    known |= {"kl_hist": histogram_to_json(histogram(kl_bin_index([0.1] * 4))), "artefact_bytes": 0, "seconds": 0.1}
    known |= {"ece_count": [4], "ece_confidence": [2.0], "ece_correct": [3]}
    sizes = {"stored_bytes": 5.0, "allocated_bytes": 5.0, "baseline_bytes": 10.0, "stored_bytes_end": 6.0, "baseline_bytes_end": 11.0}
    return known | sizes | ({} if kept is None else {"kept": kept})


def test_rows_say_so_in_result_table_and_report() -> None:
    spec = RunSpec(methods=expand(["baseline", "snapkv", "streaming_llm", "lagkv"]), evaluators=(EvaluatorSpec("perplexity"),), samples=1)
    labels = [m.label for m in spec.methods]
    unit = {"id": "perplexity/0", "evaluator": "perplexity", "index": 0, "methods": labels, "steps": 1}
    state = apply(RunState(), ev.RunStarted(0.0, spec.to_plain(), [unit], labels, "0", SCHEMA))
    for label in labels:
        kept = "the same" if label in ("streaming_llm", "lagkv") else None if label == "baseline" else label
        state = apply(state, ev.RecordMade(1.0, "perplexity/0", "perplexity", label, "0", scored(2.0, kept)))
    built = results.build(state, "run")
    said = {row["method"]: row.get("same_tokens_as") for row in built["results"] if row.get("same_tokens_as")}
    assert said == {"lagkv": "streaming_llm"}
    note = "lagkv: same tokens as streaming_llm in every sample"
    assert note in render(state)
    assert any(note in section.lines for section in build(built).sections)
